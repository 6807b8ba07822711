/**
 * Overlays that make a disk local as it is read. The image below is what the caller names, whatever the overlay says;
 * the overlay says what that was, so that it is not put over another one.
 */
import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { BlockError, Errno } from '../base/errors.ts';
import { alignUp, SECTOR } from '../base/units.ts';
import { backingFormatOf, isUrl } from './backing-names.ts';
import { createIn, type Engine, withDisk } from './images.ts';
import { inspect } from './inspect.ts';
import type { OpenMessage } from './messages.ts';
import { openMessage } from './open-message.ts';
import { type BlockdevOptions, blockdevOf, isWritethrough, type TargetOptions } from './options.ts';
import { NO_REFERENCES, type ReferenceOptions } from './reference-policy.ts';

/** What opens the overlay `path` of `target`; it is made where it is not there. */
export async function overlayMessage(
  engine: Engine,
  path: string,
  target: string | BlockdevOptions,
  options: TargetOptions & ReferenceOptions,
): Promise<OpenMessage> {
  const { format, qcow2, http, objects, references, allowDirectories } = options;
  const { cache, discard, detectZeroes, readOnly, forceShare } = options;
  const refuse = (why: string): BlockError =>
    new BlockError(Errno.EINVAL, `Could not open the overlay '${path}': ${why}`, { where: { path } });
  if (forceShare) throw refuse('it is written to as it is read, and cannot be shared by force');
  const image = openMessage(target, { format, qcow2, http, objects, readOnly: true, references, allowDirectories });
  const found = image.probed ? await engine.call('probe', image) : image.options;
  const backing: BlockdevOptions = { ...found, 'read-only': true };
  const below = { ...image, options: backing, probed: false, policy: image.probed ? NO_REFERENCES : image.policy };
  const named = { name: backingName(image.name), format: backingFormatOf(found) };
  if (!existsSync(path)) await make(engine, path, below, named);
  else if (await isOneFile(path, image.name)) throw refuse('it is the image itself');
  const { backingFile = null, backingFormat } = (await inspect(path, { format: 'qcow2' })).qcow2 ?? {};
  const layer = blockdevOf(path, { format: 'qcow2', cache, discard, detectZeroes });
  const common = { name: image.name, writethrough: isWritethrough(cache), probed: false };
  const readonly = readOnly ? { 'read-only': true } : {};
  // All of it is local by now.
  if (backingFile === null) return { ...common, options: { ...layer, ...readonly }, policy: NO_REFERENCES };
  if (backingFile !== named.name) throw refuse(`it is one of '${backingFile}', not of '${named.name}'`);
  if (backingFormat !== named.format) throw refuse(`the format below it is '${backingFormat}', not '${named.format}'`);
  const tree = {
    ...{ driver: 'copy-on-read', discard: layer.discard, ...readonly },
    file: { ...layer, 'read-only': false, backing },
  };
  return { ...common, options: tree as unknown as BlockdevOptions, policy: below.policy };
}

async function isOneFile(a: string, b: string): Promise<boolean> {
  const [one, other] = await Promise.all([a, b].map((path) => stat(path).catch(() => undefined)));
  return one !== undefined && one.dev === other?.dev && one.ino === other.ino;
}

async function make(
  engine: Engine,
  path: string,
  below: OpenMessage,
  named: { readonly name: string; readonly format: string },
): Promise<void> {
  const { size } = await withDisk(engine, below, (disk) => engine.call('stat', { disk }));
  const options = { size: alignUp(size, SECTOR), 'backing-file': named.name, 'backing-fmt': named.format };
  await createIn(engine, path, options, { format: 'qcow2', knowsBacking: true });
}

/**
 * What the overlay calls the image: a whole path, or a URL without credentials. Neither is followed when somebody opens
 * the overlay by itself, unless he allows that directory; a relative name could lead to another file there.
 */
function backingName(name: string): string {
  return isUrl(name) ? name.replace(/^([^:]+:\/\/)[^/@]*@/, '$1') : resolve(name);
}
