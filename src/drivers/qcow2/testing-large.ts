/**
 * For a test, as a program of its own: random writes and reads of a large image, and the memory that took.
 * `node testing-large.js PATH OPTIONS SEED REQUESTS CLUSTERS`, where OPTIONS are JSON and CLUSTERS says over how many
 * clusters of the disk's beginning the requests are spread. Prints JSON.
 */
import { AioContext } from '../../aio/context.ts';
import { chooseBackend } from '../../aio/select.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { Qcow2Node } from './driver.ts';
import { registerQcow2 } from './testing.ts';

const CLUSTER = 64 * KiB;
const LENGTH = 4 * KiB;
const AT_ONCE = 16;

export interface LargeReport {
  /** Bytes, by which each was more at the end than after opening and a tenth of the requests. */
  readonly rss: number;
  readonly heap: number;
  readonly buffers: number;
  /** Of the cache of L2 tables, from opening on. */
  readonly misses: number;
  readonly evictions: number;
}

/** What is written to a cluster: its number. */
function fill(iov: Iov, cluster: number): void {
  for (let i = 0; i < LENGTH; i += 8) iov.memories[0]!.view.setFloat64(iov.offsets[0]! + i, cluster);
}

function memory(): { rss: number; heap: number; buffers: number } {
  globalThis.gc?.();
  const { rss, heapUsed, arrayBuffers } = process.memoryUsage();
  return { rss, heap: heapUsed, buffers: arrayBuffers };
}

async function main([path, options, seed, requests, clusters]: readonly string[]): Promise<LargeReport> {
  registerQcow2();
  const context = new AioContext(await chooseBackend());
  const file = { driver: 'file', filename: path };
  const open = (): Promise<BlockBackend> =>
    BlockBackend.open(context, { driver: 'qcow2', ...JSON.parse(options!), backing: null, file });
  let blk = await open();
  const prng = new Prng(Number(seed));
  const written: number[] = [];
  const buffers = Array.from({ length: AT_ONCE }, () =>
    Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(LENGTH)))),
  );
  const write = async (iov: Iov): Promise<void> => {
    const cluster = prng.below(Number(clusters));
    written.push(cluster);
    fill(iov, cluster);
    await blk.write(cluster * CLUSTER, iov);
  };
  const read = async (iov: Iov): Promise<void> => {
    const cluster = prng.pick(written);
    await blk.read(cluster * CLUSTER, iov);
    const found = iov.memories[0]!.view.getFloat64(iov.offsets[0]! + LENGTH - 8);
    if (found !== cluster) throw new Error(`cluster ${cluster} holds ${found}`);
  };
  const round = async (count: number, one: (iov: Iov) => Promise<void>): Promise<void> => {
    for (let done = 0; done < count; done += AT_ONCE) await Promise.all(buffers.map(one));
  };
  await round(Number(requests) / 10, write);
  await round(Number(requests) / 10, read);
  const before = memory();
  await round(Number(requests), write);
  await round(Number(requests), read);
  await blk.close();
  blk = await open();
  await round(Number(requests), read);
  const after = memory();
  const { misses, evictions } = (blk.root!.impl as Qcow2Node).image.l2.stats;
  await blk.close();
  await context.stop();
  return {
    ...{ rss: after.rss - before.rss, heap: after.heap - before.heap, buffers: after.buffers - before.buffers },
    ...{ misses, evictions },
  };
}

process.stdout.write(JSON.stringify(await main(process.argv.slice(2))));
