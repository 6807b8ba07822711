/** A driver's image in the caller's own thread, for tests of the driver. */
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { BlockBackend } from '../block/backend.ts';
import type { ConformanceTarget } from '../block/conformance.ts';
import type { Driver } from '../block/driver.ts';
import type { NodeOptions } from '../block/graph.ts';
import { registerDriver } from '../block/registry.ts';
import { builtinDrivers } from './builtin-drivers.ts';

export interface OpenImageOptions {
  /** The drivers that are tested; those that come along are known. */
  readonly drivers?: readonly Driver[];
  /** Default: BLOCKPLANE_AIO, or io_uring where it works. */
  readonly aio?: 'ring' | 'pool';
}

/**
 * Opens a tree of nodes in this thread, in an AioContext of its own that ends with it. One at a time: each may put the
 * thread to sleep.
 */
export async function openImage(node: NodeOptions, options: OpenImageOptions = {}): Promise<ConformanceTarget> {
  builtinDrivers();
  for (const driver of options.drivers ?? []) registerDriver(driver);
  const context = new AioContext(await chooseBackend(options.aio));
  try {
    const blk = await BlockBackend.open(context, node);
    return {
      blk,
      async close() {
        await blk.close();
        await context.stop();
      },
    };
  } catch (error) {
    await context.stop();
    throw error;
  }
}
