/** The objects of a command line. */
import type { ObjectStore } from '../lib/objects/store.ts';

/** With the objects that `texts` describe, in order; or the text of the help that one of them asks for. */
export async function objectStore(texts: readonly string[]): Promise<ObjectStore | string | undefined> {
  if (texts.length === 0) return undefined;
  const [{ ObjectStore }, { addObject, objectHelp }] = await Promise.all([
    import('../lib/objects/store.ts'),
    import('../lib/objects/text.ts'),
  ]);
  const objects = new ObjectStore();
  for (const text of texts) {
    const help = objectHelp(objects, text);
    if (help !== undefined) return help;
    await addObject(objects, text);
  }
  return objects;
}
