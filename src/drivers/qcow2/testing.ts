/** For tests: making images in any world. */
import type { AioContext } from '../../aio/context.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { Driver } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { fileDriver } from '../file/driver.ts';
import { rawDriver } from '../raw/driver.ts';
import { createImage } from './create.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import { qcow2Driver } from './driver.ts';

/** A node that makes an image of its children when it opens. */
const makerDriver: Driver<{ create: string }> = {
  name: 'qcow2-maker',
  role: 'format',
  children: { file: 'primary', data: 'primary' },
  options: { create: { type: 'string', required: true, help: 'options of createImage, as JSON' } },
  async open(context, { create }) {
    const file = (await context.openChild('file', 'primary'))!;
    const dataFile = await context.openChild('data', 'primary');
    await createImage({ aio: context.aio, file, ...(dataFile ? { dataFile } : {}) }, JSON.parse(create));
    return { length: 0 };
  },
};

/** Idempotent. */
export function registerQcow2(): void {
  registerDriver(fileDriver);
  registerDriver(rawDriver);
  registerDriver(qcow2Driver);
  registerDriver(makerDriver);
}

/** Makes an image in `file`, and with `data` an external data file. */
export async function makeImage(
  context: AioContext,
  file: NodeOptions,
  options: Qcow2CreateOptions,
  data?: NodeOptions,
): Promise<void> {
  const create = JSON.stringify(options);
  const blk = await BlockBackend.open(context, { driver: 'qcow2-maker', create, file, ...(data ? { data } : {}) });
  await blk.close();
}
