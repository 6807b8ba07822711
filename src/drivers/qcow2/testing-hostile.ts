/**
 * For tests: what we and QEMU make of a damaged image in a file. A refused image is not written; one that is found
 * damaged in use is marked, takes no more writes, and can be read.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { Incompatible } from '../../proto/qcow2/constants.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';

/** Of the disks below. */
export const DISK: Bytes = MiB;
const PIECE = 64 * KiB;
/** Every byte of data, before and after. */
const OLD = 0x11;
const NEW = 0x5a;

/** The bytes of an image, to be changed. All numbers are of the disk's byte order. */
export class Poke {
  bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes.slice();
  }

  get view(): DataView {
    return new DataView(this.bytes.buffer, 0, this.bytes.length);
  }

  u8(at: number, value: number): this {
    this.view.setUint8(at, value);
    return this;
  }

  u16(at: number, value: number): this {
    this.view.setUint16(at, value);
    return this;
  }

  u32(at: number, value: number): this {
    this.view.setUint32(at, value);
    return this;
  }

  u64(at: number, value: bigint | number): this {
    this.view.setBigUint64(at, BigInt(value));
    return this;
  }

  number(at: number): number {
    return Number(this.view.getBigUint64(at) & 0x00ff_ffff_ffff_fe00n);
  }

  /** Where the active L1 table, its first L2 table and the first cluster of data are, and the refcount block. */
  get l1(): number {
    return this.number(40);
  }
  get l2(): number {
    return this.number(this.l1);
  }
  get data(): number {
    return this.number(this.l2);
  }
  get refcountTable(): number {
    return this.number(48);
  }
  get refcounts(): number {
    return this.number(this.refcountTable);
  }
  get snapshots(): number {
    return this.number(64);
  }

  /** Sets the refcount (of 16 bits) of the cluster at `at`. */
  refcount(at: number, count: number): this {
    return this.u16(this.refcounts + (at / 2 ** this.view.getUint32(20)) * 2, count);
  }

  set(at: number, bytes: Uint8Array): this {
    this.bytes.set(bytes, at);
    return this;
  }

  /** Makes the file longer. */
  grow(length: number): this {
    const more = new Uint8Array(length);
    more.set(this.bytes);
    this.bytes = more;
    return this;
  }
}

/** What came of one step: undefined where it did. */
export interface Tried {
  open?: BlockError;
  read?: BlockError;
  write?: BlockError;
  /** Of a read after a write that failed. */
  readAfter?: BlockError;
}

function memory(blk: BlockBackend, length: Bytes, value: number): Iov {
  return Iov.of(blk.context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value)));
}

/** The first error of work on each piece of the disk. */
async function everywhere(
  blk: BlockBackend,
  work: (at: number, length: number) => Promise<void>,
): Promise<BlockError | undefined> {
  let first: BlockError | undefined;
  const length = Math.min(blk.length, DISK);
  for (let at = 0; at < length; at += PIECE) {
    try {
      await work(at, Math.min(PIECE, length - at));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      first ??= error;
    }
  }
  return first;
}

function failure(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  throw error;
}

/** Opens an image, reads all of it, and for writing writes everywhere, flushes and reads again. */
export async function useImage(context: AioContext, options: NodeOptions): Promise<Tried> {
  const tried: Tried = {};
  let blk: BlockBackend;
  try {
    blk = await BlockBackend.open(context, options);
  } catch (error) {
    return { open: failure(error) };
  }
  const read = () => everywhere(blk, (at, length) => blk.read(at, memory(blk, length, 0xee)));
  Object.assign(tried, { read: await read() });
  if (options['read-only'] !== true) {
    const write = await everywhere(blk, (at, length) => blk.write(at, memory(blk, length, NEW)));
    const flush = await blk.flush().then(() => undefined, failure);
    Object.assign(tried, { write: write ?? flush, readAfter: await read() });
  }
  await blk.close().catch(failure);
  return tried;
}

/** True where QEMU could do it, of the same steps; undefined where it did not come to that. */
export interface QemuTried {
  open: boolean;
  read?: boolean;
  write?: boolean;
  messages: string;
}

const NOT_ASKED: QemuTried = { open: true, messages: '' };

/** The same by qemu-io. */
export async function qemuUses(path: string, readOnly: boolean, length: Bytes = DISK): Promise<QemuTried> {
  const commands = readOnly ? [`read 0 ${length}`] : [`read 0 ${length}`, `write -P 90 0 ${length}`, 'flush'];
  const args = ['-f', 'qcow2', ...(readOnly ? ['-r'] : []), ...commands.flatMap((one) => ['-c', one]), path];
  const { stdout, stderr, signal } = await run('qemu-io', args);
  const messages = `${stderr}${stdout}`;
  if (/can't open/.test(messages)) return { open: false, messages };
  if (signal !== null) return { open: true, read: false, write: false, messages: `ended by ${signal}` };
  return {
    open: true,
    read: stdout.includes(`read ${length}/${length}`),
    ...(readOnly ? {} : { write: stdout.includes(`wrote ${length}/${length}`) }),
    messages,
  };
}

export interface Template {
  readonly options?: Partial<Qcow2CreateOptions>;
  readonly compressed?: boolean;
  readonly snapshots?: number;
}

/** Images to be damaged: a disk of 1 MiB with 64 KiB of data at its beginning and in its middle. */
export class Workshop {
  readonly #context: AioContext;
  readonly #folder: string;
  readonly #made = new Map<Template, Uint8Array>();
  #count = 0;

  constructor(context: AioContext, folder: string) {
    this.#context = context;
    this.#folder = folder;
    mkdirSync(folder, { recursive: true });
  }

  async template(template: Template): Promise<Uint8Array> {
    const made = this.#made.get(template);
    if (made) return made;
    const filename = join(this.#folder, 'template.qcow2');
    writeFileSync(filename, '');
    const file = { driver: 'file', filename };
    await makeImage(this.#context, file, { size: DISK, 'cluster-size': KiB, ...template.options });
    const blk = await BlockBackend.open(this.#context, { driver: 'qcow2', file });
    for (const at of [0, DISK / 2]) await blk.write(at, memory(blk, PIECE, OLD));
    const cluster = template.options?.['cluster-size'] ?? KiB;
    for (let i = 0; i < 4 && template.compressed; i++) {
      await blk.write(i * cluster, memory(blk, cluster, i + 1), RequestFlags.COMPRESSED);
    }
    await blk.flush();
    for (let i = 0; i < (template.snapshots ?? 0); i++) {
      await (blk.root!.impl as Qcow2Node).snapshots.create(`snapshot ${i}`);
    }
    await blk.close();
    const bytes = new Uint8Array(readFileSync(filename));
    rmSync(filename);
    this.#made.set(template, bytes);
    return bytes;
  }

  /** Puts an image into a file of its own. */
  store(bytes: Uint8Array): string {
    const path = join(this.#folder, `${this.#count++}.qcow2`);
    writeFileSync(path, bytes);
    return path;
  }

  use(path: string, readOnly: boolean, more: Partial<NodeOptions> = {}): Promise<Tried> {
    const file = { driver: 'file', filename: path };
    return useImage(this.#context, { driver: 'qcow2', 'read-only': readOnly, file, ...more });
  }
}

/** What changes when a file is written. */
export function fileState(path: string): string {
  const { mtimeNs, size } = statSync(path, { bigint: true });
  return `${mtimeNs} ${size} ${readFileSync(path).toString('latin1')}`;
}

/** One kind of damage, and what comes of it; what is not said goes well. */
export interface Row {
  readonly name: string;
  readonly template: Template;
  readonly poke: (poke: Poke) => unknown;
  /** What opening says; to everybody, and to who wants to write. */
  readonly refused?: RegExp;
  readonly refusedForWriting?: RegExp;
  /** What the first error says of reading and of writing all of the disk. */
  readonly read?: RegExp;
  readonly write?: RegExp;
  /** The damage comes to light after the write. */
  readonly marked?: boolean;
  /** QEMU takes a quarter of a minute, and is not asked. */
  readonly slowForQemu?: boolean;
  /** Steps at which QEMU says yes where we say no, or the reverse, and why. */
  readonly qemu?: { readonly open?: string; readonly read?: string; readonly write?: string };
}

/** Breaks one image for each row, and uses it. */
export async function tryRows(folder: string, rows: readonly Row[]): Promise<void> {
  registerQcow2();
  const context = new AioContext(new PoolBackend());
  const shop = new Workshop(context, folder);
  const descriptors = countDescriptors();
  for (const row of rows) {
    const poke = new Poke(await shop.template(row.template));
    row.poke(poke);
    await tryRow(shop, row, poke.bytes);
  }
  await context.stop();
  assert.ok(countDescriptors() <= descriptors, 'every file is closed');
}

function countDescriptors(): number {
  return existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0;
}

/** `error` says what `expected` says, or there are none of both. */
function says(error: BlockError | undefined, expected: RegExp | undefined, text: string): void {
  if (expected) assert.match(error?.message ?? 'nothing', expected, text);
  else assert.equal(error, undefined, text);
}

async function tryRow(shop: Workshop, row: Row, bytes: Uint8Array): Promise<void> {
  const path = shop.store(bytes);
  const before = fileState(path);
  const reader = await shop.use(path, true);
  says(reader.open, row.refused, `${row.name}: opened read-only`);
  says(reader.read, row.read, `${row.name}: read`);
  const qemuReader = row.slowForQemu ? NOT_ASKED : await qemuUses(path, true);
  const writer = await shop.use(path, false);
  says(writer.open, row.refused ?? row.refusedForWriting, `${row.name}: opened for writing`);
  says(writer.write, row.write, `${row.name}: written`);
  if (writer.open) assert.equal(fileState(path), before, `${row.name}: a refused image is not written`);
  else assertMarked(row, bytes, new Uint8Array(readFileSync(path)));
  if (row.write) says(writer.readAfter, row.read, `${row.name}: reads go on`);
  const qemuWriter = row.slowForQemu ? NOT_ASKED : await qemuUses(shop.store(bytes), false);
  const steps = [
    ['open', reader.open, qemuReader.open],
    ['open', writer.open, qemuWriter.open],
    ['read', reader.read, qemuReader.read],
    ['write', writer.write, qemuWriter.write],
  ] as const;
  for (const [step, ours, theirs] of steps) {
    if (theirs === undefined || (step !== 'open' && (step === 'read' ? reader : writer).open)) continue;
    const differs = (ours === undefined) !== theirs;
    const both = `we say ${ours?.message ?? 'yes'}, QEMU ${qemuReader.messages} ${qemuWriter.messages}`;
    assert.equal(differs, row.qemu?.[step] !== undefined, `${row.name}: ${step}: ${both}`);
  }
}

/** An image that turned out to be damaged says so to the next one, in version 3, and holds the same metadata. */
function assertMarked(row: Row, before: Uint8Array, after: Uint8Array): void {
  const marked = (bytes: Uint8Array) => ((bytes[79] ?? 0) & Incompatible.CORRUPT) !== 0;
  const modern = before[7] === 3;
  assert.equal(marked(after), modern && (row.write !== undefined || row.marked === true), `${row.name}: corrupt bit`);
  if (row.write === undefined) return;
  // Writes over data in place came before the damage was found; nothing else was written, but for the mark.
  if (modern) after[79]! &= ~Incompatible.CORRUPT;
  const wrong = after.findIndex((byte, i) => byte !== before[i] && (byte !== NEW || before[i] !== OLD));
  assert.equal(wrong, -1, `${row.name}: written over metadata`);
}
