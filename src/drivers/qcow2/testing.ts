/** For tests: making images in any world. */
import type { AioContext } from '../../aio/context.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { CheckFix, CheckResult, Driver } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { fileDriver } from '../file/driver.ts';
import { rawDriver } from '../raw/driver.ts';
import { checkFile } from './check.ts';
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

/** A node that checks its child when it opens. */
const checkerDriver: Driver<{ fix: CheckFix }> = {
  name: 'qcow2-checker',
  role: 'format',
  children: { file: 'primary' },
  options: { fix: { type: 'enum', values: ['none', 'leaks', 'all'], help: 'what to repair' } },
  async open(context, { fix }) {
    const file = (await context.openChild('file', 'primary'))!;
    checked = await checkFile({ aio: context.aio, file }, fix);
    return { length: 0 };
  },
};
let checked: CheckResult | undefined;

/** Idempotent. */
export function registerQcow2(): void {
  registerDriver(fileDriver);
  registerDriver(rawDriver);
  registerDriver(qcow2Driver);
  registerDriver(makerDriver);
  registerDriver(checkerDriver);
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

/** Checks an image that is not open. */
export async function checkIn(context: AioContext, file: NodeOptions, fix: CheckFix): Promise<CheckResult> {
  const options = { driver: 'qcow2-checker', fix, file, ...(fix === 'none' ? { 'read-only': true } : {}) };
  const blk = await BlockBackend.open(context, options);
  await blk.close();
  return checked!;
}
