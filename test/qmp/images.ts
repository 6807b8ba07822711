/** Images that conversations begin with, and a client of their exports. */
import assert from 'node:assert/strict';
import { peer } from '../harness.ts';
import { step, type Talk } from './conversation.ts';

/** base <- top, each with a MiB of its own; targets that are there. */
export async function images(directory: string): Promise<void> {
  const create = (...args: string[]) => peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...args);
  const write = (name: string, at: string) =>
    peer('qemu-io', '-f', 'qcow2', '-c', `write -P 1 ${at} 1M`, `${directory}/${name}.qcow2`);
  await create(`${directory}/base.qcow2`, '4M');
  await write('base', '0');
  await create('-b', `${directory}/base.qcow2`, '-F', 'qcow2', `${directory}/top.qcow2`);
  await write('top', '2M');
  await create(`${directory}/there.qcow2`, '4M');
  await create('-b', 'base.qcow2', '-F', 'qcow2', `${directory}/over.qcow2`);
  await create(`${directory}/small.qcow2`, '2M');
}

/** Where {@link client} asks. */
export const SERVER = step('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });

/** What qemu-io does to the export `x` of the server in a directory. */
export function client(...commands: string[]): (directory: string) => Promise<string> {
  const steps = commands.flatMap((one) => ['-c', one]);
  return (directory) => peer('qemu-io', '-f', 'raw', ...steps, `nbd+unix:///x?socket=${directory}/nbd`);
}

/** Compares the images of these names that both have left. */
export function sameImages(names: readonly string[]): NonNullable<Talk['after']> {
  const info = async (directory: string, name: string): Promise<unknown> => {
    const text = await peer('qemu-img', 'info', '--output=json', `${directory}/${name}`);
    const { 'virtual-size': size, format, 'backing-filename': below } = JSON.parse(text) as Record<string, string>;
    return [size, format, below?.replace(directory, '')];
  };
  return async (ours, theirs) => {
    for (const name of names) {
      assert.deepEqual(await info(ours, name), await info(theirs, name), name);
      await peer('qemu-img', 'compare', '-q', `${ours}/${name}`, `${theirs}/${name}`);
    }
  };
}
