/** For tests: a guest of an overlay that is streamed meanwhile, and what it must read, byte for byte. */
import assert from 'node:assert/strict';
import type { AioContext } from '../aio/context.ts';
import { Iov } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import type { Bytes } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { RequestFlags } from '../block/driver.ts';
import type { NodeOptions } from '../block/graph.ts';
import { registerDriver } from '../block/registry.ts';
import { copyOnReadDriver } from '../drivers/copy-on-read/driver.ts';
import { makeImage, registerQcow2 } from '../drivers/qcow2/testing.ts';
import { StreamJob, type StreamJobOptions } from './stream-job.ts';

export const CLUSTER: Bytes = 4096;
export const SIZE: Bytes = 60 * CLUSTER + 512;
/** Of a middle image that ends within the disk, and hides what is behind its end. */
const MIDDLE_SIZE: Bytes = 40 * CLUSTER;
export const SHORT_BASE: Bytes = 35 * CLUSTER + 1536;
/** Workers own parts of the disk, and share the clusters at the borders. */
const PART = 15 * CLUSTER + 1024;

export interface ChainFiles {
  readonly base: string;
  readonly middle: string;
  readonly top: string;
}

export function registerStreamDrivers(): void {
  registerQcow2();
  registerDriver(copyOnReadDriver);
}

const file = (filename: string): NodeOptions => ({ driver: 'file', filename });

/** The tree of an overlay over an overlay over a raw image. */
export function chainOf({ base, middle, top }: ChainFiles, filter: boolean): NodeOptions {
  const raw = { driver: 'raw', 'node-name': 'base', file: file(base) };
  const below = { driver: 'qcow2', 'node-name': 'middle', file: file(middle), backing: raw };
  const layer = { driver: 'qcow2', 'node-name': 'top', discard: 'unmap', file: file(top), backing: below };
  return filter ? { driver: 'copy-on-read', discard: 'unmap', file: layer } : (layer as NodeOptions);
}

function write(blk: BlockBackend, at: number, bytes: Uint8Array): Promise<void> {
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
  shared.set(bytes);
  return blk.write(at, Iov.of(blk.context.backend.memory(shared)));
}

export async function readAll(blk: BlockBackend, at = 0, length = SIZE): Promise<Uint8Array> {
  const bytes = new Uint8Array(new SharedArrayBuffer(length)).fill(0xa5);
  await blk.read(at, Iov.of(blk.context.backend.memory(bytes)));
  return Uint8Array.from(bytes);
}

/** Makes the images, in files that are there and empty; answers what the disk holds. */
export async function makeChain(
  context: AioContext,
  files: ChainFiles,
  seed: number,
  baseSize = SIZE,
): Promise<Uint8Array> {
  const random = new Prng(seed);
  const model = new Uint8Array(SIZE);
  const patch = async (target: NodeOptions, size: Bytes, pieces: number): Promise<void> => {
    const blk = await BlockBackend.open(context, target, { allowWriteBeyondEnd: true });
    for (let n = 0; n < pieces; n++) {
      const length = 1 + random.below(5 * CLUSTER);
      const at = random.below(size - length);
      const bytes = new Uint8Array(length).fill(random.below(4) === 0 ? 0 : 1 + random.below(255));
      await write(blk, at, bytes);
      model.set(bytes, at);
    }
    await blk.close();
  };
  const options = { 'cluster-size': CLUSTER, compat: random.below(2) === 0 ? '0.10' : '1.1' } as const;
  const names = { middle: { 'backing-file': files.base, 'backing-fmt': 'raw' } } as const;
  await patch({ driver: 'raw', file: file(files.base) }, baseSize, 12);
  const grown = await BlockBackend.open(context, file(files.base));
  await grown.truncate(baseSize);
  await grown.close();
  model.fill(0, MIDDLE_SIZE);
  await makeImage(context, file(files.middle), { size: MIDDLE_SIZE, ...options, ...names.middle });
  const raw = { driver: 'raw', 'read-only': true, file: file(files.base) };
  await patch({ driver: 'qcow2', file: file(files.middle), backing: raw }, MIDDLE_SIZE, 4);
  const named = { 'backing-file': files.middle, 'backing-fmt': 'qcow2' } as const;
  await makeImage(context, file(files.top), { size: SIZE, ...options, ...named });
  return model;
}

/** Streams all, or what is above the base. */
export function streamOf(blk: BlockBackend, files: ChainFiles, keepBase: boolean, more: object = {}): StreamJob {
  const top = blk.root!.children.find(({ role }) => role === 'filtered')?.node ?? blk.root!;
  const node = top.cow?.node.cow?.node;
  const base = keepBase && node ? { node, name: files.base, format: 'raw' } : undefined;
  const options: StreamJobOptions = { id: 'stream', base, alone: (step) => step(), ...more };
  return new StreamJob(blk, options);
}

/** Reads, writes, zeroes and discards at random, several at a time, checked against `model`, which follows. */
export async function useDisk(blk: BlockBackend, model: Uint8Array, seed: number, steps: number): Promise<void> {
  const worker = async (from: number): Promise<void> => {
    const random = new Prng(seed * 31 + from);
    const end = Math.min(from + PART, SIZE);
    for (let n = 0; n < steps; n++) {
      const length = 1 + random.below(Math.min(3 * CLUSTER, end - from));
      const at = from + random.below(end - from - length + 1);
      const what = random.below(6);
      if (what < 2) {
        const found = await readAll(blk, at, length);
        assert.ok(Buffer.compare(found, model.subarray(at, at + length)) === 0, `seed ${seed}: read ${at}+${length}`);
      } else if (what < 4) {
        const bytes = new Uint8Array(length).fill(1 + random.below(255));
        await write(blk, at, bytes);
        model.set(bytes, at);
      } else if (what === 4) {
        await blk.writeZeroes(at, length, random.below(2) === 0 ? RequestFlags.MAY_UNMAP : 0);
        model.fill(0, at, at + length);
      } else {
        await blk.discard(at, length);
        // What it reads as is not defined, but it stays.
        model.set(await readAll(blk, at, length), at);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.ceil(SIZE / PART) }, (_, i) => worker(i * PART)));
}
