/**
 * `driver=raw,file.driver=file,file.filename=a,,b`: a tree of texts, as the options of a command line are written. The
 * same text may be JSON instead, where it begins with '{'.
 */
import { QmpError } from './errors.ts';
import { emptyObject, isObject, type Json, type JsonObject, type OpenObject } from './json.ts';
import { type JsonError, JsonReader } from './json-reader.ts';

/** Levels of names; each is one recursion of who reads the tree. */
const DEPTH_MAX = 64;
const NAME_MAX = 127;

export interface OptionText {
  /** How the values are to be read. */
  readonly style: 'json' | 'text';
  readonly value: JsonObject;
  /** `help` or `?` stood among them. */
  readonly help: boolean;
}

/** `implied`: the name of a first value that comes without one. With `flags`, a name alone is 'on', and with 'no'
 *  before it 'off'. */
export function parseOptionText(text: string, implied?: string, flags = false): OptionText {
  if (text.startsWith('{')) return { style: 'json', value: jsonOf(text), help: false };
  const tree = emptyObject();
  let help = false;
  let rest = text;
  for (let first = true; rest !== ''; first = false) {
    const name = /^[^=,]*/.exec(rest)![0];
    const valued = rest[name.length] === '=';
    if (!valued && (name === 'help' || name === '?')) help = true;
    let at = valued ? name.length + 1 : 0;
    const value = valueAt(rest, at);
    at += value.length;
    if (valued) put(tree, name, value.text);
    else if (first && implied !== undefined && name !== '' && !help) put(tree, implied, value.text);
    else if (flags && name !== '') put(tree, name.replace(/^no/, ''), name.startsWith('no') ? 'off' : 'on');
    else if (name !== 'help' && name !== '?') throw new QmpError(`Expected '=' after parameter '${name}'`);
    rest = rest.slice(at + 1);
  }
  return { style: 'text', value: tree, help };
}

function jsonOf(text: string): JsonObject {
  const values: Json[] = [];
  let failure: JsonError | undefined;
  const reader = new JsonReader(
    (value) => values.push(value),
    (error) => {
      failure ??= error;
    },
  );
  reader.push(new TextEncoder().encode(`${text}\n`));
  if (failure) throw new QmpError(failure.message);
  const [value, more] = values;
  if (value === undefined) throw new QmpError('JSON parse error, premature EOI');
  if (more !== undefined || !isObject(value)) throw new QmpError('JSON parse error, expecting one object');
  return value;
}

/** The value that begins at `at`, up to a single comma; its length as it is written. */
function valueAt(text: string, at: number): { readonly text: string; readonly length: number } {
  let value = '';
  let i = at;
  for (; i < text.length; i++) {
    if (text[i] === ',') {
      if (text[i + 1] !== ',') break;
      i++;
    }
    value += text[i];
  }
  return { text: value, length: i - at };
}

function put(tree: OpenObject, name: string, value: string): void {
  const path = name.split('.');
  const bad = path.length > DEPTH_MAX || path.some((step) => !/^[A-Za-z0-9_-]{1,127}$/.test(step));
  if (bad) throw new QmpError(`Invalid parameter '${name.slice(0, NAME_MAX)}'`);
  let at = tree;
  for (const [i, step] of path.slice(0, -1).entries()) {
    const next = at[step] ?? emptyObject();
    if (!isObject(next)) throw inconsistent(path.slice(0, i + 1).join('.'));
    at[step] = next;
    at = next as OpenObject;
  }
  const last = path.at(-1)!;
  if (isObject(at[last])) throw inconsistent(name);
  // The last of several counts.
  at[last] = value;
}

function inconsistent(name: string): QmpError {
  return new QmpError(`Parameters '${name}.*' used inconsistently`);
}
