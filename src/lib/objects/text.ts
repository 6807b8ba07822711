/** Objects on command lines: `--object secret,id=sec0,file=key`, or as JSON. */
import { keyval } from '../keyval.ts';
import { type ObjectType, wrong } from './object-type.ts';
import type { ObjectStore } from './store.ts';

/** Makes the object that a text describes. EINVAL, with nothing secret in its message. */
export async function addObject(objects: ObjectStore, text: string): Promise<void> {
  const json = /^(?:json:)?(\{.*)$/s.exec(text)?.[1];
  if (json !== undefined) return objects.addTree(fromJson(json), false);
  return objects.addTree(keyval(text, 'qom-type'), true);
}

function fromJson(text: string): Readonly<Record<string, unknown>> {
  try {
    return JSON.parse(text) as Readonly<Record<string, unknown>>;
  } catch {
    // What the parser says quotes the text.
    throw wrong('JSON parse error');
  }
}

/** What `--object help` and `--object TYPE,help` print; undefined for a text that asks for no help. */
export function objectHelp(objects: ObjectStore, text: string): string | undefined {
  const words = text.split(',');
  const asks = (word: string | undefined): boolean => word === 'help' || word === '?';
  if (asks(words[0])) {
    const names = objects.types.map(({ name }) => `  ${name}\n`).sort();
    return `List of user creatable objects:\n${names.join('')}`;
  }
  if (!words.slice(1).some(asks)) return undefined;
  const type = objects.types.find(({ name }) => name === words[0]);
  return type && `${type.name} options:\n${optionLines(type)}`;
}

function optionLines({ options }: ObjectType): string {
  const lines = Object.entries(options).map(([name, { type, values, help }]) => {
    const what = values ? values.join('|') : type === 'secret' ? 'string' : type;
    return `  ${name}=<${what}>  - ${help}\n`;
  });
  return lines.sort().join('');
}
