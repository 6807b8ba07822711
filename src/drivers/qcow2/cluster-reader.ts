/** Reading many tables of a cluster each, in the order of the file: neighbours at once, and several reads in flight. */
import { BlockError } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import type { MaybePromise } from '../../block/driver.ts';
import { kernelBytes, type MetadataIo } from './metadata-io.ts';

/** Of one read, and so of each of the buffers; 4 of them keep a disk busy. */
const RUN_BYTES = MiB;
const RUNS = 4;

/** A cluster that was read: its bytes are in `memory` from `position` on, until the visit has ended. */
export interface ReadCluster {
  /** Of the offset in the list. */
  readonly index: number;
  readonly memory: Memory;
  readonly position: number;
}

interface Run {
  readonly first: number;
  readonly count: number;
  readonly memory: Memory;
  readonly failure: BlockError | undefined;
}

/**
 * Visits the clusters at `offsets`, which ascend, one after the other. What cannot be read goes to `failed`, cluster by
 * cluster.
 */
export async function eachCluster(
  io: MetadataIo,
  offsets: Float64Array,
  clusterSize: Bytes,
  visit: (cluster: ReadCluster) => MaybePromise<void>,
  failed: (index: number, error: BlockError) => void,
): Promise<void> {
  const perRun = Math.max(1, RUN_BYTES / clusterSize);
  const free: Memory[] = [];
  const running: Promise<Run>[] = [];
  let next = 0;
  while (next < offsets.length || running.length > 0) {
    while (next < offsets.length && running.length < RUNS) {
      const memory = free.pop() ?? io.aio.backend.memory(kernelBytes(perRun * clusterSize));
      const count = neighbours(offsets, next, perRun, clusterSize);
      running.push(read(io, memory, next, count, offsets[next]!, clusterSize));
      next += count;
    }
    const run = await running.shift()!;
    for (let i = 0; i < run.count; i++) {
      const cluster = { index: run.first + i, memory: run.memory, position: i * clusterSize };
      const failure = run.failure && (await readAgain(io, cluster, offsets[cluster.index]!, clusterSize));
      if (failure) {
        failed(cluster.index, failure);
        continue;
      }
      const later = visit(cluster);
      if (later instanceof Promise) await later;
    }
    free.push(run.memory);
  }
}

function neighbours(offsets: Float64Array, first: number, most: number, clusterSize: Bytes): number {
  let count = 1;
  while (
    count < most &&
    first + count < offsets.length &&
    offsets[first + count] === offsets[first]! + count * clusterSize
  ) {
    count++;
  }
  return count;
}

/** Never rejects with a BlockError: nobody may be waiting for it yet. */
async function read(
  io: MetadataIo,
  memory: Memory,
  first: number,
  count: number,
  at: Offset,
  clusterSize: Bytes,
): Promise<Run> {
  const failure = await failureOf(io.child.read(at, Iov.of(memory, 0, count * clusterSize)));
  return { first, count, memory, failure };
}

/** Of a run that could not be read as a whole. */
function readAgain(
  io: MetadataIo,
  { memory, position }: ReadCluster,
  at: Offset,
  clusterSize: Bytes,
): Promise<BlockError | undefined> {
  return failureOf(io.child.read(at, Iov.of(memory, position, clusterSize)));
}

async function failureOf(work: Promise<void>): Promise<BlockError | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
}
