/** `--object`. */
import { ObjectStore } from '../../lib/objects/store.ts';
import { addObject, objectHelp } from '../../lib/objects/text.ts';
import type { Terminal } from './verb.ts';

/** What the texts describe; undefined where one asked for help, which is printed. */
export async function objectsOf(texts: readonly string[], terminal: Terminal): Promise<ObjectStore | undefined> {
  const objects = new ObjectStore();
  for (const text of texts) {
    const help = objectHelp(objects, text);
    if (help !== undefined) {
      terminal.out(help);
      return undefined;
    }
    await addObject(objects, text);
  }
  return objects;
}
