/** For tests that kill a daemon: the images of its disk, and what is in them afterwards. */
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Prng } from '../src/base/prng.ts';
import type { Disk } from '../src/index.ts';
import { type Output, peer, run } from './harness.ts';

const MiB = 1024 * 1024;
export const SIZE = 4 * MiB;
const BLOCK = 4096;
const CHECK_LEAKS = 3;
const LOCK_TRIES = 500;
/** Of a guest, at a time. */
const WRITERS = 2;
/** Writes from one flush to the next. */
const FLUSH_EACH = 16;
/** The last byte of a header's incompatible features. */
const DIRTY_AT = 79;
/** The disk, from below; clusters of 4 KiB, so that there is much metadata to write. */
export const LAYERS = ['base', 'mid', 'top'] as const;
/**
 * What else there is: `new` and `copy` are empty; `over` is an empty overlay of `top`; `other` is another disk.
 * `tracked` may be taken for `top`: it has a persistent bitmap 'b', of what it does not have in common with `kept`.
 */
export const OTHERS = ['new', 'copy', 'over', 'other', 'tracked', 'kept'] as const;
export const BITMAP = 'b';

const pathOf = (directory: string, name: string): string => join(directory, `${name}.qcow2`);

export async function makeImages(directory: string): Promise<void> {
  const create = (name: string, below?: string): Promise<string> => {
    const backing = below === undefined ? [] : ['-b', `${below}.qcow2`, '-F', 'qcow2'];
    const options = ['-f', 'qcow2', '-o', 'cluster_size=4k', ...backing];
    return peer('qemu-img', 'create', '-q', ...options, pathOf(directory, name), String(SIZE));
  };
  const write = (name: string, value: number, at: string, length: string): Promise<string> =>
    peer('qemu-io', '-f', 'qcow2', '-c', `write -P ${value} ${at} ${length}`, pathOf(directory, name));
  for (const [n, name] of LAYERS.entries()) {
    await create(name, LAYERS[n - 1]);
    await write(name, n + 1, `${n * 768}k`, '1536k');
  }
  for (const name of ['new', 'copy', 'other']) await create(name);
  await create('over', 'top');
  await write('other', 9, '1M', '2M');
  await create('tracked', 'mid');
  await write('tracked', 3, '1536k', '1536k');
  await peer('qemu-img', 'convert', '-O', 'qcow2', pathOf(directory, 'tracked'), pathOf(directory, 'kept'));
  await peer('qemu-img', 'bitmap', '--add', '--enable', '-g', '4k', pathOf(directory, 'tracked'), BITMAP);
  await write('tracked', 4, '1M', '1M');
}

export function copyImage(from: string, name: string, to: string, as = name): void {
  copyFileSync(pathOf(from, name), pathOf(to, as));
}

/** Nothing was written to the file. */
export function isUntouched(from: string, name: string, to: string): boolean {
  return readFileSync(pathOf(from, name)).equals(readFileSync(pathOf(to, name)));
}

/** qemu-img, once it gets the locks: what a process that was killed had in its ring is let go of after its end. */
async function image(...args: string[]): Promise<Output> {
  for (let tries = 1; ; tries++) {
    const output = await run('qemu-img', args);
    if (tries === LOCK_TRIES || !/Failed to get .*lock/.test(output.stderr)) return output;
    await delay(10);
  }
}

export async function content(directory: string, name: string): Promise<Buffer> {
  const raw = join(directory, `${name}.raw`);
  const { code, stderr } = await image('convert', '-f', 'qcow2', '-O', 'raw', pathOf(directory, name), raw);
  assert.equal(code, 0, stderr);
  return readFileSync(raw);
}

/** Leaks may be, errors not. One that says that it is dirty (snapshots, amendments) is repaired first, as by whoever
 *  opens it. */
export async function assertClean(directory: string, name: string, what: string): Promise<void> {
  const path = pathOf(directory, name);
  const isDirty = (readFileSync(path)[DIRTY_AT]! & 1) === 1;
  if (isDirty) await image('check', '-q', '-r', 'all', '-f', 'qcow2', path);
  const { code, stdout, stderr } = await image('check', '-f', 'qcow2', path);
  assert.ok(code === 0 || code === CHECK_LEAKS, `${what}, ${name}: ${stdout}${stderr}`);
}

/** Each bitmap of `top` is in use, so that nobody relies on it, or else can be read; and {@link BITMAP} then has all in
 *  which `top` is not as `kept`. Answers whether that was in use. */
export async function assertBitmaps(directory: string, what: string): Promise<boolean> {
  const path = pathOf(directory, 'top');
  const info = JSON.parse(await peer('qemu-img', 'info', '-f', 'qcow2', '--output=json', path));
  const bitmaps: { name: string; flags: string[] }[] = info['format-specific'].data.bitmaps ?? [];
  const usable = bitmaps.filter(({ flags }) => !flags.includes('in-use'));
  const dirty = new Set<number>();
  for (const { name } of usable) {
    const map = await peer('nbdinfo', '--json', `--map=qemu:dirty-bitmap:${name}`, ...shown(path, name));
    if (name !== BITMAP) continue;
    for (const { offset, length, type } of JSON.parse(map) as { offset: number; length: number; type: number }[]) {
      for (let at = offset; type === 1 && at < offset + length; at += BLOCK) dirty.add(at);
    }
  }
  assert.ok(
    bitmaps.some(({ name }) => name === BITMAP),
    `${what}: bitmap '${BITMAP}' is gone`,
  );
  if (!usable.some(({ name }) => name === BITMAP)) return true;
  const [now, then] = [await content(directory, 'top'), await content(directory, 'kept')];
  for (let at = 0; at < SIZE; at += BLOCK) {
    const isSame = now.subarray(at, at + BLOCK).equals(then.subarray(at, at + BLOCK));
    assert.ok(isSame || dirty.has(at), `${what}: ${at} differs and is not dirty`);
  }
  return false;
}

/** The words that have nbdinfo run a server of the image. */
function shown(path: string, bitmap: string): string[] {
  return ['--', '[', 'qemu-nbd', '-r', '-f', 'qcow2', '-B', bitmap, path, ']'];
}

/** A guest that writes blocks, each of one value, and flushes now and then: several requests at a time. */
export class Guest {
  readonly disk: Disk;
  /** Of each block: what may be read of it: what the last flush has kept, and what came after. */
  readonly #allowed: Set<number>[];
  readonly #random: Prng;

  constructor(disk: Disk, start: Uint8Array, random: Prng) {
    this.disk = disk;
    this.#random = random;
    this.#allowed = Array.from({ length: SIZE / BLOCK }, (_, block) => new Set([start[block * BLOCK]!]));
  }

  /** Until the disk fails. */
  async use(): Promise<void> {
    await Promise.all(Array.from({ length: WRITERS }, (_, writer) => this.#write(writer)));
  }

  /** Each writer has blocks of its own, so that their order is known. */
  async #write(writer: number): Promise<void> {
    const written = new Map<number, number>();
    for (let n = 1; ; n++) {
      const block = this.#random.below(SIZE / BLOCK / WRITERS) * WRITERS + writer;
      const value = 1 + this.#random.below(255);
      this.#allowed[block]!.add(value);
      await this.disk.write(Buffer.alloc(BLOCK, value), 0, BLOCK, block * BLOCK);
      written.set(block, value);
      if (n % FLUSH_EACH !== 0) continue;
      await this.disk.flush();
      for (const [at, last] of written) this.#allowed[at] = new Set([last]);
      written.clear();
    }
  }

  /** What is not as the guest may expect it; undefined for nothing. */
  wrong(found: Buffer): string | undefined {
    for (const [block, allowed] of this.#allowed.entries()) {
      const bytes = found.subarray(block * BLOCK, (block + 1) * BLOCK);
      const value = bytes[0]!;
      if (!allowed.has(value)) return `block ${block} is ${value}, not one of ${[...allowed].join(', ')}`;
      if (!bytes.equals(Buffer.alloc(BLOCK, value))) return `block ${block} is torn`;
    }
    return undefined;
  }
}
