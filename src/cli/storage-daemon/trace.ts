/** `-T [[enable=]PATTERN][,events=FILE][,file=FILE]`. There are no trace events here to be switched on. */
import { closeSync, openSync, readFileSync } from 'node:fs';
import { errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import { parseOptionText } from './option-text.ts';

/** Told of a name that is no event's; `where`: the line of a file that it is in. */
export type Unknown = (name: string, where?: string) => void;

const NAMES: readonly string[] = ['enable', 'events', 'file'];

/** True where the names of all events were asked for: there are none to print. Throws QmpError. */
export function applyTrace(text: string, unknown: Unknown): boolean {
  const { value, help } = parseOptionText(text, 'enable');
  const { enable, events, file } = value as Readonly<Record<string, string | undefined>>;
  if (help || enable === 'help' || enable === '?') return true;
  const wrong = Object.keys(value).find((name) => !NAMES.includes(name));
  if (wrong !== undefined) throw new QmpError(`Invalid parameter '${wrong}'`);
  if (enable !== undefined) tell(enable, unknown);
  for (const [i, line] of (events === undefined ? [] : linesOf(events)).entries()) {
    if (!line.startsWith('#')) tell(line, unknown, `${events}:${i + 1}`);
  }
  // It would get what is traced.
  if (file !== undefined) closeSync(attempt(`Error opening logfile ${file}`, () => openSync(file, 'a')));
  return false;
}

/** A pattern need not fit anything; '-' before a name switches that off. */
function tell(pattern: string, unknown: Unknown, where?: string): void {
  const name = pattern.replace(/^-/, '');
  if (name !== '' && !name.includes('*')) unknown(name, where);
}

function linesOf(file: string): string[] {
  return attempt(file, () => readFileSync(file, 'utf8')).split('\n');
}

function attempt<T>(what: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw new QmpError(`${what}: ${errnoText(errnoOf(error))}`, 'GenericError', error);
  }
}
