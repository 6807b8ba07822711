/** Looking for damage in an image, and repairing it. */
import type { AioContext } from '../aio/context.ts';
import { BlockError } from '../base/errors.ts';
import type { CheckResult } from '../block/driver.ts';
import { driverByName } from '../block/registry.ts';
import { fixOf } from '../lib/image-options.ts';
import { needDrivers } from '../lib/needed-drivers.ts';
import { checkFile } from '../lib/worker-images.ts';
import { findImage, type ImageSpec, type OpenHow, openFailure } from './open.ts';

export interface CheckHow extends Omit<OpenHow, 'write'> {
  /** Default: nothing is changed. */
  readonly repair?: 'leaks' | 'all' | undefined;
}

/**
 * Checks the image; undefined for a format without checks. Only its own file is opened. An image that is damaged so
 * that it cannot be checked rejects as one that cannot be opened.
 */
export async function checkImage(
  context: AioContext,
  spec: ImageSpec,
  how: CheckHow = {},
): Promise<{ readonly format: string; readonly result: CheckResult } | undefined> {
  const fix = fixOf(how);
  const { tree: options } = await findImage(context, spec, { ...how, write: fix !== 'none' });
  await needDrivers(options);
  if (driverByName(options.driver).check === undefined) return undefined;
  try {
    const result = await checkFile(context, { options, name: spec.name, probed: false, fix });
    return { format: options.driver, result };
  } catch (error) {
    throw error instanceof BlockError && error.message.startsWith('Could not open') ? openFailure(spec, error) : error;
  }
}
