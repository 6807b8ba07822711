/** Which backend drives a thread: io_uring where kernel and container let us have it, node's own I/O elsewhere. */
import { BlockError, Errno } from '../base/errors.ts';
import type { AioBackend } from './backend.ts';

export type BackendChoice = 'ring' | 'pool';

/**
 * Makes the backend for the calling thread. `want`, or else the environment's BLOCKPLANE_AIO (ring | pool), forces one:
 * a ring that cannot be had is then an error that says why (ENOTSUP), where otherwise pool stands in and its `detail`
 * gives the reason. Modules are loaded as needed, so that pool never loads the native layer's FFI for the choice.
 */
export async function chooseBackend(want?: BackendChoice): Promise<AioBackend> {
  const choice = want ?? choiceFromEnvironment();
  if (choice === 'pool') return poolBackend(want ? 'as asked for' : 'BLOCKPLANE_AIO=pool');
  const reason = await whyNoRing();
  if (reason === undefined) {
    const { RingBackend } = await import('./ring/backend.ts');
    try {
      return new RingBackend();
    } catch (error) {
      // The probe's small ring works, the real one does not: out of descriptors or locked memory, say.
      if (choice === 'ring' || !(error instanceof BlockError)) throw error;
      return poolBackend(`no io_uring: ${error.message}`);
    }
  }
  if (choice === 'ring') throw new BlockError(Errno.ENOTSUP, `Could not use io_uring: ${reason}`);
  return poolBackend(`no io_uring: ${reason}`);
}

/** Why this system cannot run the ring backend; undefined when it can. */
export async function whyNoRing(): Promise<string | undefined> {
  const { probeIoUring } = await import('../native/probe.ts');
  const probe = probeIoUring();
  return probe.available ? undefined : (probe.reason ?? 'unknown reason');
}

async function poolBackend(detail: string): Promise<AioBackend> {
  const { PoolBackend } = await import('./pool/backend.ts');
  return new PoolBackend(detail);
}

function choiceFromEnvironment(): BackendChoice | undefined {
  const value = process.env.BLOCKPLANE_AIO;
  if (value === undefined || value === '') return undefined;
  if (value === 'ring' || value === 'pool') return value;
  throw new BlockError(Errno.EINVAL, `Could not choose an AIO backend: BLOCKPLANE_AIO is '${value}', not ring or pool`);
}
