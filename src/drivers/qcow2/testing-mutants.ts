/** For tests: images with every kind of structure in them, where their fields are, and how to break them. */
import type { AioContext } from '../../aio/context.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { alignUp, type Bytes, KiB, type Offset } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { encodeBitmapDirectory } from '../../proto/qcow2/bitmap-directory.ts';
import { Autoclear, ExtensionType, Incompatible } from '../../proto/qcow2/constants.ts';
import { parseHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { setExtension } from '../../proto/qcow2/header-extensions.ts';
import { SnapshotTableParser } from '../../proto/qcow2/snapshot-table.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage } from './testing.ts';
import { countedFile } from './testing-counted.ts';

export interface BaseImage {
  readonly name: string;
  readonly options: Qcow2CreateOptions;
  readonly bytes: Uint8Array;
  /** Of the external data file and of the backing file. */
  readonly data: Uint8Array | undefined;
  readonly backing: Uint8Array | undefined;
  readonly fields: readonly Field[];
  /** Where structures begin. */
  readonly places: readonly Offset[];
}

/** A number on the disk. */
export interface Field {
  readonly kind:
    | 'header'
    | 'extension'
    | 'l1'
    | 'l2'
    | 'refcount table'
    | 'refcount'
    | 'snapshot'
    | 'bitmap'
    | 'packed';
  readonly at: Offset;
  readonly length: 1 | 2 | 4 | 8;
}

const SIZE = 160 * KiB;

/** Every kind of image that a mutant may come from. */
const KINDS: readonly (readonly [string, Omit<Qcow2CreateOptions, 'size'>])[] = [
  ['small clusters', { 'cluster-size': 512 }],
  ['version 2', { 'cluster-size': 512, compat: '0.10' }],
  ['zstd', { 'cluster-size': 4 * KiB, 'compression-type': 'zstd' }],
  ['subclusters', { 'cluster-size': 16 * KiB, 'extended-l2': true }],
  ['refcounts of 1 bit', { 'cluster-size': 512, 'refcount-bits': 1 }],
  ['refcounts of 64 bits', { 'cluster-size': KiB, 'refcount-bits': 64 }],
  ['lazy refcounts', { 'cluster-size': KiB, 'lazy-refcounts': true }],
  ['data file', { 'cluster-size': 512, 'data-file': 'data' }],
  ['raw data file', { 'cluster-size': 4 * KiB, 'data-file': 'data', 'data-file-raw': true }],
  ['backing file', { 'cluster-size': KiB, 'backing-file': 'below', 'backing-fmt': 'raw' }],
];

/** The options of a node on the counted files of a base image. */
export function nodeOf(image: Pick<BaseImage, 'data' | 'backing'>, driver: string, readOnly: boolean): NodeOptions {
  return {
    ...{ driver, 'read-only': readOnly, discard: 'unmap', 'cache-clean-interval': 0 },
    file: { driver: 'counted', file: 'image' },
    ...(image.data ? { 'data-file': { driver: 'counted', file: 'data' } } : {}),
    ...(image.backing ? { backing: { driver: 'counted', file: 'backing' } } : {}),
  };
}

/** One image of each kind. Needs the drivers of testing-counted.ts. */
export async function baseImages(context: AioContext): Promise<BaseImage[]> {
  const images: BaseImage[] = [];
  for (const [seed, [name, options]] of KINDS.entries()) {
    images.push(await baseImage(context, name, { ...options, size: SIZE }, new Prng(seed)));
  }
  return images;
}

async function baseImage(
  context: AioContext,
  name: string,
  options: Qcow2CreateOptions,
  prng: Prng,
): Promise<BaseImage> {
  const file = countedFile('image', new Uint8Array(0));
  const external = options['data-file'] === undefined ? undefined : countedFile('data', new Uint8Array(0));
  const below = options['backing-file'] === undefined ? undefined : prng.fill(new Uint8Array(SIZE / 2));
  if (below) countedFile('backing', below);
  const counted = (which: string): NodeOptions => ({ driver: 'counted', file: which });
  await makeImage(context, counted('image'), options, external && counted('data'));
  const children = { data: external?.content(), backing: below };
  const blk = await BlockBackend.open(context, nodeOf(children, 'qcow2', false));
  await fill(blk, options, prng);
  await blk.close();
  const bytes = file.content();
  return { name, options, bytes, ...children, data: external?.content(), ...fieldsOf(bytes) };
}

function random(blk: BlockBackend, length: Bytes, prng: Prng): Iov {
  const bytes = new Uint8Array(new SharedArrayBuffer(length));
  // Half of it compresses well.
  prng.fill(bytes.subarray(0, length / 2));
  return Iov.of(blk.context.backend.memory(bytes));
}

/** Data, zeroes, holes, compressed clusters; all of it again under snapshots, where there can be some; bitmaps. */
async function fill(blk: BlockBackend, options: Qcow2CreateOptions, prng: Prng): Promise<void> {
  const node = blk.root!.impl as Qcow2Node;
  const flat = options['data-file'] !== undefined;
  const cluster = options['cluster-size']!;
  const rounds = flat || options['refcount-bits'] === 1 ? 1 : 3;
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < 6; i++) await blk.write(prng.below(SIZE - 3 * KiB), random(blk, 3 * KiB, prng));
    for (let i = 0; i < 4 && !flat; i++) {
      const at = prng.below(SIZE / cluster) * cluster;
      await blk.write(at, random(blk, cluster, prng), RequestFlags.COMPRESSED);
    }
    await blk.writeZeroes(prng.below(SIZE / 2 / cluster) * cluster, cluster * 4, 0);
    await blk.discard(prng.below(SIZE / 2 / cluster) * cluster, cluster * 2);
    await blk.flush();
    if (round + 1 < rounds) await node.snapshots.create(`snapshot ${round}`);
  }
  if (options.compat !== '0.10') await addBitmaps(node);
}

/** A directory of two bitmaps, with a table and a cluster of bits each. */
async function addBitmaps(node: Qcow2Node): Promise<void> {
  const { image } = node;
  const { clusterSize } = image.geometry;
  const at = await image.refcounts.allocate(5);
  const entry = (name: string, which: number) => ({
    ...{ tableOffset: at + which * clusterSize, tableSize: 1, flags: 2, type: 1, granularityBits: 16, name },
    extraData: new Uint8Array(0),
  });
  const directory = encodeBitmapDirectory([entry('first', 1), entry('second', 2)], clusterSize);
  const bytes = new Uint8Array(5 * clusterSize);
  const view = new DataView(bytes.buffer);
  bytes.set(directory);
  for (const which of [1, 2]) view.setUint32(which * clusterSize + 4, at + (which + 2) * clusterSize);
  await image.io.write(at, bytes);
  const data = new Uint8Array(24);
  new DataView(data.buffer).setUint32(0, 2);
  new DataView(data.buffer).setUint32(12, directory.length);
  new DataView(data.buffer).setUint32(20, at);
  await image.changeHeader(() => {
    setExtension(image.header, ExtensionType.BITMAPS, data);
    image.header.autoclear |= BigInt(Autoclear.BITMAPS);
  });
}

/** Lengths of the header's fields, from its beginning. */
const HEADER_FIELDS = [4, 4, 8, 4, 4, 8, 4, 4, 8, 8, 4, 4, 8, 8, 8, 8, 4, 4, 1] as const;
/** Of an entry of the snapshot table, up to the id. */
const SNAPSHOT_FIELDS = [8, 4, 2, 2, 4, 4, 8, 4, 4, 8, 8, 8] as const;
/** Of an entry of the bitmap directory, up to the name. */
const BITMAP_FIELDS = [8, 4, 4, 1, 1, 2, 4] as const;

class Walk {
  readonly fields: Field[] = [];
  readonly places: Offset[] = [0];
  readonly view: DataView;
  readonly header: Qcow2Header;
  readonly clusterSize: Bytes;

  constructor(bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer);
    this.header = parseHeader(bytes, bytes.length);
    this.clusterSize = 2 ** this.header.clusterBits;
  }

  row(kind: Field['kind'], at: Offset, lengths: readonly (1 | 2 | 4 | 8)[]): Offset {
    let next = at;
    for (const length of lengths) {
      // The last clusters of a table may be beyond the end of the file.
      if (next + length <= this.view.byteLength) this.fields.push({ kind, at: next, length });
      next += length;
    }
    return next;
  }

  /** The offsets in a table of 64-bit entries; its fields are noted. */
  table(kind: Field['kind'], at: Offset, entries: number): Offset[] {
    this.places.push(at);
    const offsets: Offset[] = [];
    for (let i = 0; i < entries; i++) {
      this.row(kind, at + i * 8, [8]);
      // Small images: the upper half holds flags only.
      const offset = this.view.getUint32(at + i * 8 + 4);
      if (offset !== 0) offsets.push(offset);
    }
    return offsets;
  }

  tree(at: Offset, entries: number): void {
    for (const table of this.table('l1', at, entries)) {
      this.places.push(table);
      for (let i = 0; i < this.clusterSize / 8; i++) this.row('l2', table + i * 8, [8]);
      for (let i = 0; i < this.clusterSize; i += 8) {
        if ((this.view.getUint8(table + i) & 0x40) === 0) continue;
        const packed = this.view.getUint32(table + i + 4);
        this.row('packed', packed, [8, 8, 8]);
      }
    }
  }
}

/** Every number of an image's structures, and where structures begin. */
function fieldsOf(bytes: Uint8Array): Pick<BaseImage, 'fields' | 'places'> {
  const walk = new Walk(bytes);
  const { header, clusterSize, view } = walk;
  const fixed = header.version === 2 ? HEADER_FIELDS.slice(0, 13) : HEADER_FIELDS;
  walk.row('header', 0, fixed);
  let at = header.version === 2 ? 72 : 112;
  for (const { data } of header.extensions) {
    walk.row('extension', at, [4, 4]);
    if (data.length <= 24) for (let i = 0; i + 8 <= data.length; i += 8) walk.row('extension', at + 8 + i, [8]);
    at += 8 + alignUp(data.length, 8);
  }
  walk.tree(header.l1Offset, header.l1Size);
  const entries = (header.refcountTableClusters * clusterSize) / 8;
  for (const block of walk.table('refcount table', header.refcountTableOffset, entries)) {
    walk.places.push(block);
    for (let i = 0; i < clusterSize; i += 2) walk.row('refcount', block + i, [2]);
  }
  if (header.snapshotCount > 0) {
    walk.places.push(header.snapshotsOffset);
    const parser = new SnapshotTableParser(header, bytes.length);
    while (parser.needed > 0) {
      walk.row('snapshot', parser.at, SNAPSHOT_FIELDS);
      parser.take(
        bytes.subarray(
          parser.at,
          parser.at + 40 + 24 + view.getUint16(parser.at + 12) + view.getUint16(parser.at + 14),
        ),
      );
    }
    for (const { l1Offset, l1Size } of parser.entries) walk.tree(l1Offset, l1Size);
  }
  const directory = header.extensions.find(({ type }) => type === ExtensionType.BITMAPS)?.data;
  if (directory) {
    const place = new DataView(directory.buffer).getUint32(20);
    walk.row('bitmap', place, BITMAP_FIELDS);
    walk.row('bitmap', place + 32, BITMAP_FIELDS);
    for (const which of [1, 2]) walk.table('bitmap', place + which * clusterSize, 2);
  }
  return { fields: walk.fields, places: walk.places };
}

/** Values at which a field's meaning changes, as two halves. */
const EDGES: readonly (readonly [number, number])[] = [
  ...([0, 1, 2, 8, 9, 21, 22, 63, 64, 72, 104, 511, 512, 513, 0xffff, 0x1_0000, 0x7fff_ffff] as const).map(
    (low) => [0, low] as const,
  ),
  ...([0x8000_0000, 0xffff_fe00, 0xffff_ffff] as const).map((low) => [0, low] as const),
  ...([1, 0x20_0000, 0x1f_ffff, 0xff_ffff, 0x100_0000, 0x4000_0000, 0x7fff_ffff, 0x8000_0000] as const).map(
    (high) => [high, 0] as const,
  ),
  [0x001f_ffff, 0xffff_ffff],
  [0x00ff_ffff, 0xffff_fe00],
  [0x7fff_ffff, 0xffff_ffff],
  [0xffff_ffff, 0xffff_ffff],
  [0x8000_0000, 1],
  [0xbfff_ffff, 0xffff_0000],
];

function put(view: DataView, field: Field, high: number, low: number): void {
  if (field.length === 8) {
    view.setUint32(field.at, high);
    view.setUint32(field.at + 4, low);
  } else if (field.length === 4) view.setUint32(field.at, low);
  else if (field.length === 2) view.setUint16(field.at, low);
  else view.setUint8(field.at, low);
}

/** Breaks one field of `bytes`; says what it did. */
function breakField(image: BaseImage, field: Field, bytes: Uint8Array, prng: Prng): string {
  const view = new DataView(bytes.buffer);
  const what = prng.below(4);
  const [high, low] = prng.pick(EDGES);
  if (what === 0) put(view, field, high, low);
  else if (what === 1) {
    const at = field.at + prng.below(field.length);
    bytes[at]! ^= 1 << prng.below(8);
  } else if (what === 2) {
    // Points to another structure; the flags stay, or are set.
    const flags = field.length === 8 ? (prng.chance(0.5) ? view.getUint32(field.at) : 0x8000_0000) : 0;
    put(view, field, flags, prng.pick(image.places));
  } else {
    const other = prng.pick(image.fields.filter(({ kind, length }) => kind === field.kind && length === field.length));
    bytes.copyWithin(field.at, other.at, other.at + field.length);
  }
  return `${field.kind} at ${field.at}`;
}

export interface Mutant {
  readonly bytes: Uint8Array;
  /** For messages. */
  readonly what: string;
}

/** An image with one to four broken fields; each kind of structure is as likely as any other. */
export function mutate(image: BaseImage, prng: Prng): Mutant {
  const bytes = image.bytes.slice();
  const kinds = [...new Set(image.fields.map(({ kind }) => kind))];
  const broken: string[] = [];
  for (let i = prng.between(1, 4); i > 0; i--) {
    const kind = prng.pick(kinds);
    broken.push(breakField(image, prng.pick(image.fields.filter((field) => field.kind === kind)), bytes, prng));
  }
  // Now and then the file ends early.
  const cut = prng.chance(0.05) ? prng.below(bytes.length) : bytes.length;
  if (cut < bytes.length) broken.push(`cut off at ${cut}`);
  return { bytes: bytes.subarray(0, cut), what: `${image.name}: ${broken.join(', ')}` };
}

/** True when a header says that the image is to be repaired, or is not to be written. */
export function isMarked(header: Qcow2Header): boolean {
  return (header.incompatible & (Incompatible.DIRTY | Incompatible.CORRUPT)) !== 0;
}
