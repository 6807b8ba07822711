/** For tests: an IOThread's setup with one disk in memory, which can be held up, drained, closed and made to die. */

import { GlobalMutex, globalMutex } from '../aio/global-mutex.ts';
import type { Furnished, SetupThread } from '../aio/iothread-worker.ts';
import { Bug } from '../base/assert.ts';
import { BlockBackend } from '../block/backend.ts';
import type { Drained } from '../block/drain.ts';
import { registerDriver } from '../block/registry.ts';
import { type DiskOp, registerTestDrivers, testDisk } from '../block/testing.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import { BlkHandle } from './handle.ts';
import { ChannelHost } from './host.ts';
import type { BlkDescriptor, BlkIdentity, ChannelOffer } from './layout.ts';

const DISK_BYTES = 1024 * 1024;

export interface HomeReport {
  readonly log: readonly string[];
  readonly requests: number;
  readonly slow: number;
  readonly channels: number;
  readonly queued: number;
  readonly inFlight: number;
}

/** What another BlkHandle in a home thread says to a synchronous read. */
function trySync(descriptor: BlkDescriptor): string {
  const handle = BlkHandle.attach(descriptor);
  const memory = new SharedArrayBuffer(512);
  handle.register(memory);
  try {
    handle.readSync(0, new Uint8Array(memory));
    return 'done';
  } catch (error) {
    return `${(error as { code: string }).code}: ${(error as Error).message}`;
  } finally {
    void handle.close();
  }
}

async function localRead(descriptor: BlkDescriptor): Promise<readonly number[]> {
  await using handle = BlkHandle.attach(descriptor);
  const memory = new SharedArrayBuffer(1024);
  handle.register(memory);
  await handle.write(4096, new Uint8Array(memory, 0, 512).fill(77));
  await handle.read(4096, new Uint8Array(memory, 512, 512));
  return [...new Set(new Uint8Array(memory, 512))];
}

export async function setup({ context }: SetupThread): Promise<Furnished> {
  registerTestDrivers();
  registerDriver(nullDriver);
  const disk = testDisk('disk', DISK_BYTES);
  const memory = { driver: 'memory', disk: 'disk' };
  const blk = await BlockBackend.open(context, memory, { name: 'disk' });
  const empty = await BlockBackend.open(context, { driver: 'null-co', size: 2 ** 40 }, { name: 'null' });
  const hosts = { disk: new ChannelHost(blk), null: new ChannelHost(empty) };
  let drained: Drained | undefined;
  const handlers = {
    share: ({ offer, which }: { offer: ChannelOffer; which: 'disk' | 'null' }): BlkIdentity => {
      hosts[which].introduce(offer);
      return hosts[which].identity;
    },
    report: (): HomeReport => ({
      log: disk.log,
      requests: blk.stats.requests + empty.stats.requests,
      slow: blk.stats.slow,
      channels: hosts.disk.channels,
      queued: blk.queued,
      inFlight: blk.inFlight,
    }),
    hold: (op: DiskOp) => disk.hold(op),
    release: (op: DiskOp) => disk.release(op),
    /** Releases once the disk is drained, and says so in `told` before. */
    releaseWhenDrained: ({ op, told }: { op: DiskOp; told: Int32Array<SharedArrayBuffer> }) => {
      const look = setInterval(() => {
        if (blk.quiesce === 0) return;
        clearInterval(look);
        Atomics.store(told, 0, 1);
        disk.release(op);
      }, 1);
    },
    waiting: (op: DiskOp) => disk.waiting(op),
    fail: (op: DiskOp) => disk.script.push({ op, errno: 28 }),
    drain: async () => {
      drained = await blk.drain();
    },
    undrain: () => drained?.end(),
    truncate: (length: number) => blk.truncate(length),
    closeDisk: () => hosts.disk.close(),
    /** Does nothing else until `over`. */
    busy: (over: Int32Array<SharedArrayBuffer>) => {
      Atomics.store(over, 1, 1);
      while (Atomics.load(over, 0) === 0);
    },
    bug: () => {
      setImmediate(() => {
        throw new Bug('a broken promise');
      });
    },
    exit: () => process.exit(3),
    /** The thread ends after that time. */
    exitIn: (ms: number) => {
      setTimeout(() => process.exit(3), ms);
    },
    bytes: () => disk.bytes,
    trySync,
    localRead,
    tryLock: () => {
      try {
        globalMutex().lock().release();
        return 'taken';
      } catch (error) {
        return (error as Error).message;
      }
    },
    acquisitions: (words: Int32Array<SharedArrayBuffer>) => new GlobalMutex(words).stats.acquisitions,
  };
  return {
    handlers: handlers as Furnished['handlers'],
    async stop() {
      drained?.end();
      await hosts.disk.close();
      await hosts.null.close();
      await blk.close();
      await empty.close();
    },
  };
}
