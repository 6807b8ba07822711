/** For tests of persistent bitmaps: images, and what QEMU says of them. */
import { closeSync, openSync, readFileSync, readSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, type TestContext } from 'node:test';
import { peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import type { Prng } from '../../base/prng.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { DirtyBitmap } from '../../block/dirty-bitmap.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerTestDrivers, testIov } from '../../block/testing.ts';
import { encodeHeader, parseHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import { makeImage, registerQcow2 } from './testing.ts';

/** Dirty ranges: offset and length. */
export type Extents = readonly (readonly [number, number])[];

function openQcow2(context: AioContext, path: string, more: Record<string, unknown> = {}): Promise<BlockBackend> {
  const file = { driver: 'file', filename: path };
  return BlockBackend.open(context, { driver: 'qcow2', discard: 'unmap', ...more, file } as NodeOptions);
}

export type Shape = Partial<Qcow2CreateOptions> & { readonly size: number };

/** An image in a folder of its own; its external data file is beside it. */
async function makeQcow2(context: AioContext, t: TestContext, options: Shape): Promise<string> {
  const path = join(scratch(t), 'image.qcow2');
  writeFileSync(path, '');
  const data = options['data-file'] === undefined ? undefined : `${path}.data`;
  if (data !== undefined) writeFileSync(data, '');
  const dataNode = data === undefined ? undefined : { driver: 'file', filename: data };
  const all = { ...options, ...(data === undefined ? {} : { 'data-file': data }) } as Qcow2CreateOptions;
  await makeImage(context, { driver: 'file', filename: path }, all, dataNode);
  return path;
}

/** For a file of tests: a context that ends with them, and images in it. */
export function setting(): {
  readonly context: AioContext;
  readonly open: (path: string, more?: Record<string, unknown>) => Promise<BlockBackend>;
  readonly make: (t: TestContext, options: Shape) => Promise<string>;
} {
  registerTestDrivers();
  registerQcow2();
  const context = new AioContext(new PoolBackend());
  after(() => context.stop());
  return {
    context,
    open: (path, more) => openQcow2(context, path, more),
    make: (t, options) => makeQcow2(context, t, options),
  };
}

export function extentsOf(bitmap: DirtyBitmap): Extents {
  const found: [number, number][] = [];
  for (let at = bitmap.next(0, bitmap.size, true); at < bitmap.size; ) {
    const end = bitmap.next(at, bitmap.size, false);
    found.push([at, end - at]);
    at = bitmap.next(end, bitmap.size, true);
  }
  return found;
}

/** What QEMU says is dirty. */
export async function peerExtents(path: string, name: string): Promise<Extents> {
  const server = ['[', 'qemu-nbd', '-r', '-f', 'qcow2', '-B', name, path, ']'];
  const text = await peer('nbdinfo', `--map=qemu:dirty-bitmap:${name}`, '--json', '--', ...server);
  const map = JSON.parse(text) as { offset: number; length: number; type: number }[];
  const found: [number, number][] = [];
  for (const { offset, length, type } of map) {
    const last = found.at(-1);
    if (type === 0) continue;
    if (last && last[0] + last[1] === offset) last[1] += length;
    else found.push([offset, length]);
  }
  return found;
}

export interface PeerBitmap {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

export async function peerBitmaps(path: string): Promise<PeerBitmap[]> {
  const info = JSON.parse(await peer('qemu-img', 'info', '--output=json', path)) as {
    'format-specific': { data: { bitmaps?: PeerBitmap[] } };
  };
  return info['format-specific'].data.bitmaps ?? [];
}

/** 'name granularity flags' of each. */
export async function peerList(path: string): Promise<string[]> {
  return (await peerBitmaps(path)).map(({ name, granularity, flags }) => `${name} ${granularity} ${flags.join()}`);
}

export async function checked(path: string): Promise<void> {
  await peer('qemu-img', 'check', '-q', path);
}

/** Writes in random places; small ones, so that a large disk costs nothing. */
export async function scribble(blk: BlockBackend, prng: Prng, writes: number): Promise<void> {
  for (let i = 0; i < writes; i++) {
    const length = Math.min(blk.length, prng.between(1, 20_000));
    const at = prng.below(blk.length - length + 1);
    if (prng.chance(0.2)) await blk.writeZeroes(at, length);
    else await blk.write(at, testIov(blk.context, [length], i + 1));
  }
}

export function patchHeader(path: string, change: (header: Qcow2Header) => void): void {
  const file = openSync(path, 'r+');
  const bytes = new Uint8Array(64 * KiB);
  readSync(file, bytes, 0, bytes.length, 0);
  const header = parseHeader(bytes, statSync(path).size);
  change(header);
  writeSync(file, encodeHeader(header), 0, undefined, 0);
  closeSync(file);
}

export function headerOf(path: string): Qcow2Header {
  return parseHeader(readFileSync(path).subarray(0, 64 * KiB), statSync(path).size);
}
