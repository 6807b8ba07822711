/** For tests: images of many kinds, and ways to damage them. */
import { peer } from '../../../test/harness.ts';
import { getU64, setU64 } from '../../proto/nbd/words.ts';
import { ExtensionType } from '../../proto/qcow2/constants.ts';
import { parseHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { getRefcount, setRefcount } from '../../proto/qcow2/refcount-block.ts';
import { hostOf } from './entries.ts';

export class DamagedImage {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly header: Qcow2Header;
  readonly clusterSize: number;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.header = parseHeader(bytes, bytes.length);
    this.clusterSize = 2 ** this.header.clusterBits;
  }

  /** Where entry `index` of the L1 table is. */
  l1(index = 0): number {
    return this.header.l1Offset + index * 8;
  }

  /** Where entry `index` of an L2 table is; of 8 bytes, or of 16. */
  l2(index = 0, entryBytes = 8, l1At = this.l1()): number {
    return this.place(l1At) + index * entryBytes;
  }

  /** Where the refcount block of the file's first clusters is. */
  get block(): number {
    return this.place(this.header.refcountTableOffset);
  }

  /** The offset in the entry at `at`. */
  place(at: number): number {
    return hostOf(this.view.getUint32(at), this.view.getUint32(at + 4));
  }

  /** Sets and clears bits of the 64-bit word at `at`. */
  flip(at: number, bits: { readonly set?: readonly number[]; readonly clear?: readonly number[] }): void {
    const half = (bit: number): number => at + (bit >= 32 ? 0 : 4);
    for (const bit of bits.set ?? []) {
      this.view.setUint32(half(bit), (this.view.getUint32(half(bit)) | (1 << (bit % 32))) >>> 0);
    }
    for (const bit of bits.clear ?? []) {
      this.view.setUint32(half(bit), (this.view.getUint32(half(bit)) & ~(1 << (bit % 32))) >>> 0);
    }
  }

  /** Writes a whole entry: an offset, and the bits that go with it. */
  point(at: number, offset: number, ...set: readonly number[]): void {
    setU64(this.view, at, offset);
    this.flip(at, { set });
  }

  refcount(offset: number): number {
    return getRefcount(this.#blockView, offset / this.clusterSize, this.header.refcountOrder);
  }

  setRefcount(offset: number, count: number): void {
    setRefcount(this.#blockView, offset / this.clusterSize, this.header.refcountOrder, count);
  }

  get #blockView(): DataView {
    return new DataView(this.bytes.buffer, this.bytes.byteOffset + this.block, this.clusterSize);
  }

  u64(at: number): number {
    return getU64(this.view, at);
  }
}

const COPIED = 63;
const ZERO = 0;

/** How an image is made: options of creation, and commands of qemu-io. */
export interface Kind {
  readonly size?: string;
  readonly options?: readonly string[];
  readonly commands?: readonly string[];
  /** What is done to the file in the end. */
  readonly make?: (path: string) => Promise<void>;
}

async function withSnapshots(path: string): Promise<void> {
  for (const [i, name] of ['first', 'second', 'third'].entries()) {
    await peer('qemu-img', 'snapshot', '-c', name, path);
    // The third one shares its tables with the second one.
    if (name !== 'second') await peer('qemu-io', '-c', `write -P ${i + 5} ${64 * i}k 64k`, path);
  }
}

async function withBitmaps(path: string): Promise<void> {
  await peer('qemu-img', 'bitmap', '--add', path, 'b0');
  await peer('qemu-img', 'bitmap', '--add', '-g', '4096', path, 'b1');
  await peer('qemu-io', '-c', 'write -P 2 2M 64k', path);
}

async function compress(path: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', 'raw', `${path}.raw`, '8M');
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 3 0 1M', '-c', 'write -P 4 3M 100k', `${path}.raw`);
  await peer('qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', `${path}.raw`, path);
}

const SOME = ['write -P 1 0 300k', 'write -P 2 1M 64k', 'write -z 2M 256k'];
/** Images of every kind. */
export const KINDS = {
  plain: { commands: SOME },
  v2: { options: ['compat=0.10'], commands: SOME.slice(0, 2) },
  small: { options: ['cluster_size=512'], commands: SOME },
  large: { options: ['cluster_size=2M', 'refcount_bits=64'], size: '64M', commands: SOME },
  bits1: { options: ['cluster_size=4k', 'refcount_bits=1'], commands: SOME },
  bits2: { options: ['refcount_bits=2'], commands: SOME },
  bits4: { options: ['cluster_size=1k', 'refcount_bits=4'], commands: SOME },
  bits8: { options: ['refcount_bits=8'], commands: SOME },
  bits32: { options: ['cluster_size=32k', 'refcount_bits=32'], commands: SOME },
  preallocated: { options: ['preallocation=metadata'], commands: SOME },
  extended: { options: ['extended_l2=on'], commands: [...SOME, 'write -P 9 5M 4k'] },
  compressed: { make: compress },
  snapshots: { commands: SOME, make: withSnapshots },
  bitmaps: { commands: SOME, make: withBitmaps },
  external: { options: ['data_file=external.raw'], commands: SOME },
  externalZeroes: { options: ['data_file=external-zeroes.raw'], commands: ['write 0 256k', 'write -z 0 64k'] },
} satisfies Record<string, Kind>;

export interface Damage {
  readonly name: string;
  readonly kind: keyof typeof KINDS;
  readonly damage: (image: DamagedImage) => void;
  /** The disk reads as before once it is repaired. Default: true. */
  readonly same?: boolean;
  /** What qemu-img does not do, and we do: its answer is not compared. */
  readonly ours?: 'check' | 'repair';
  /** It goes another way about the repair, and counts what it has repaired in another way. */
  readonly fixedDiffers?: boolean;
}

const FIRST_DATA = (image: DamagedImage): number => image.place(image.l2());
/** Damage that every kind of image can have. */
const EVERYWHERE: readonly Omit<Damage, 'kind'>[] = [
  { name: 'a refcount of 0', damage: (image) => image.setRefcount(FIRST_DATA(image), 0) },
  {
    name: 'a leaked cluster',
    damage: (image) => {
      const at = image.l2(1);
      image.point(at, 0);
    },
    same: false,
  },
  { name: 'a COPIED flag that is missing', damage: (image) => image.flip(image.l2(), { clear: [COPIED] }) },
  { name: 'a COPIED flag of an L2 table missing', damage: (image) => image.flip(image.l1(), { clear: [COPIED] }) },
  { name: 'no refcount block', damage: (image) => image.point(image.header.refcountTableOffset, 0) },
];

export const DAMAGES: readonly Damage[] = [
  ...(['plain', 'v2', 'small', 'large', 'bits1', 'bits2', 'bits4', 'bits8', 'bits32'] as const).flatMap((kind) => {
    return EVERYWHERE.map((damage) => ({ ...damage, kind }));
  }),
  { name: 'a refcount of 2', kind: 'plain', damage: (image) => image.setRefcount(FIRST_DATA(image), 2) },
  { name: 'a refcount of 2^53-1', kind: 'large', damage: (image) => image.setRefcount(FIRST_DATA(image), 2 ** 53 - 1) },
  { name: 'the refcount of the header', kind: 'plain', damage: (image) => image.setRefcount(0, 0) },
  { name: 'a refcount block without refcount', kind: 'plain', damage: (image) => image.setRefcount(image.block, 0) },
  {
    name: 'a refcount block in two places',
    kind: 'plain',
    damage: (image) => image.point(image.header.refcountTableOffset + 8, image.block),
  },
  {
    name: 'a refcount block in the L1 table',
    kind: 'plain',
    damage: (image) => image.point(image.header.refcountTableOffset, image.l1()),
  },
  {
    name: 'a second refcount block in the L1 table',
    kind: 'plain',
    damage: (image) => image.point(image.header.refcountTableOffset + 8, image.l1()),
  },
  {
    name: 'a refcount block beyond the end',
    kind: 'plain',
    damage: (image) => image.point(image.header.refcountTableOffset, 2 ** 30),
    fixedDiffers: true,
  },
  {
    name: 'a misaligned refcount block',
    kind: 'plain',
    damage: (image) => image.flip(image.header.refcountTableOffset, { set: [9] }),
    ours: 'check',
  },
  {
    name: 'reserved bits in the refcount table',
    kind: 'plain',
    damage: (image) => image.flip(image.header.refcountTableOffset, { set: [0] }),
    ours: 'repair',
  },
  // The pokes of iotest 060: entries that lead into metadata.
  {
    name: 'data in the L1 table',
    kind: 'plain',
    damage: (image) => image.point(image.l2(), image.l1(), COPIED),
    same: false,
  },
  {
    name: 'data in the refcount block',
    kind: 'plain',
    damage: (image) => image.point(image.l2(), image.block, COPIED),
    same: false,
    fixedDiffers: true,
  },
  {
    name: 'data in its own L2 table',
    kind: 'plain',
    damage: (image) => image.point(image.l2(), image.place(image.l1()), COPIED),
    same: false,
  },
  {
    name: 'data in the L2 table of a snapshot',
    kind: 'snapshots',
    damage: (image) => image.point(image.l2(), image.place(image.u64(image.header.snapshotsOffset)), COPIED),
    same: false,
  },
  {
    name: 'data that is misaligned',
    kind: 'plain',
    damage: (image) => image.flip(image.l2(), { set: [9] }),
    same: false,
  },
  {
    name: 'a misaligned place of zeroes',
    kind: 'plain',
    damage: (image) => image.flip(image.l2(), { set: [9, ZERO] }),
    same: false,
  },
  {
    name: 'data beyond the end',
    kind: 'plain',
    damage: (image) => image.point(image.l2(), 2 ** 31, COPIED),
    same: false,
  },
  {
    name: 'data far beyond the end',
    kind: 'plain',
    damage: (image) => image.point(image.l2(), 0, 55, COPIED),
    same: false,
  },
  {
    name: 'reserved low bits in an L2 entry',
    kind: 'plain',
    damage: (image) => image.flip(image.l2(), { set: [1] }),
    same: false,
  },
  {
    name: 'reserved high bits in an L2 entry (iotest 080)',
    kind: 'plain',
    damage: (image) => {
      image.view.setUint32(image.l2(), 0xbfff_ffff);
      image.view.setUint32(image.l2() + 4, 0xffff_0000);
    },
    same: false,
  },
  {
    name: 'reserved bits in an L1 entry',
    kind: 'plain',
    damage: (image) => image.flip(image.l1(), { set: [57] }),
    same: false,
  },
  {
    name: 'an L2 table beyond the end',
    kind: 'plain',
    damage: (image) => image.point(image.l1(), 2 ** 31, COPIED),
    same: false,
  },
  {
    name: 'an L2 table in the place of the L1 table',
    kind: 'plain',
    damage: (image) => image.point(image.l1(), image.l1(), COPIED),
    same: false,
    ours: 'repair',
  },
  { name: 'the dirty bit', kind: 'plain', damage: (image) => image.flip(72, { set: [0] }) },
  { name: 'the corrupt bit', kind: 'plain', damage: (image) => image.flip(72, { set: [1] }) },
  {
    name: 'both bits and a leak',
    kind: 'plain',
    damage: (image) => {
      image.flip(72, { set: [0, 1] });
      image.setRefcount(FIRST_DATA(image), 2);
    },
  },
  {
    name: 'refcounts too high and too low',
    kind: 'preallocated',
    damage: (image) => {
      for (let i = 0; i < 100; i++) image.setRefcount(image.place(image.l2(i)), i % 3);
    },
  },
  {
    name: 'the bit of version 3 in version 2',
    kind: 'v2',
    damage: (image) => image.flip(image.l2(), { set: [ZERO] }),
    same: false,
  },
  {
    name: 'one cluster twice, and refcounts of 1 bit',
    kind: 'bits1',
    damage: (image) => image.point(image.l2(), image.place(image.l2(1)), COPIED),
    same: false,
  },
  // Extended L2 entries: the bitmaps are in the second half.
  {
    name: 'subclusters both allocated and zero',
    kind: 'extended',
    damage: (image) => image.flip(image.l2(0, 16) + 8, { set: [32] }),
    same: false,
  },
  {
    name: 'allocated subclusters without a cluster',
    kind: 'extended',
    damage: (image) => image.flip(image.l2(110, 16) + 8, { set: [3] }),
    same: false,
  },
  {
    name: 'a misaligned cluster with subclusters',
    kind: 'extended',
    damage: (image) => image.flip(image.l2(0, 16), { set: [10] }),
    same: false,
  },
  {
    name: 'a misaligned cluster without allocated subclusters',
    kind: 'extended',
    damage: (image) => {
      image.flip(image.l2(0, 16), { set: [10] });
      image.view.setUint32(image.l2(0, 16) + 12, 0);
    },
    same: false,
  },
  {
    name: 'bit 0, which is reserved',
    kind: 'extended',
    damage: (image) => image.flip(image.l2(0, 16), { set: [ZERO] }),
    same: false,
  },
  {
    name: 'a compressed cluster with subclusters',
    kind: 'extended',
    damage: (image) => image.flip(image.l2(0, 16), { set: [62], clear: [COPIED] }),
    same: false,
  },
  // Compressed clusters.
  {
    name: 'a compressed cluster with COPIED',
    kind: 'compressed',
    damage: (image) => image.flip(image.l2(), { set: [COPIED] }),
    same: false,
  },
  {
    name: 'a compressed cluster beyond the end',
    kind: 'compressed',
    damage: (image) => image.flip(image.l2(), { set: [52] }),
    same: false,
  },
  {
    name: 'a compressed cluster that is too long',
    kind: 'compressed',
    damage: (image) => image.flip(image.l2(), { set: [54, 55, 56, 57, 58, 59, 60, 61] }),
    same: false,
  },
  {
    name: 'a compressed cluster in the header',
    kind: 'compressed',
    damage: (image) => image.point(image.l2(), 0, 62),
    same: false,
  },
  { name: 'a refcount too low', kind: 'compressed', damage: (image) => image.setRefcount(0x50000, 2) },
  // Snapshots. An entry begins with offset and size of its L1 table.
  {
    name: 'a shared refcount too low',
    kind: 'snapshots',
    damage: (image) => image.setRefcount(image.place(image.l2(4)), 1),
  },
  {
    name: 'a shared refcount of 0',
    kind: 'snapshots',
    damage: (image) => image.setRefcount(image.place(image.l2(4)), 0),
  },
  {
    name: 'a misaligned L1 table of a snapshot',
    kind: 'snapshots',
    damage: (image) => image.flip(image.header.snapshotsOffset, { set: [9] }),
  },
  {
    name: 'an L1 table of a snapshot beyond the end',
    kind: 'snapshots',
    damage: (image) => image.point(image.header.snapshotsOffset, 2 ** 40),
  },
  {
    name: 'an L1 table of a snapshot that is too large',
    kind: 'snapshots',
    damage: (image) => image.view.setUint32(image.header.snapshotsOffset + 8, 0x1000_0000),
  },
  {
    name: 'misaligned data in a table that snapshots share',
    kind: 'snapshots',
    damage: (image) => {
      const second = secondSnapshot(image);
      image.flip(image.l2(0, 8, image.u64(second)), { set: [9] });
    },
  },
  {
    name: 'a misaligned place of zeroes in a table that snapshots share',
    kind: 'snapshots',
    damage: (image) => {
      const second = secondSnapshot(image);
      image.flip(image.l2(0, 8, image.u64(second)), { set: [9, ZERO] });
    },
  },
  { name: 'fewer snapshots than there are', kind: 'snapshots', damage: (image) => image.view.setUint32(60, 1) },
  { name: 'more snapshots than there are', kind: 'snapshots', damage: (image) => image.view.setUint32(60, 4) },
  {
    name: 'too much extra data of a snapshot',
    kind: 'snapshots',
    damage: (image) => {
      image.view.setUint32(60, 1);
      image.view.setUint32(image.header.snapshotsOffset + 36, 2000);
    },
    ours: 'check',
    fixedDiffers: true,
  },
  {
    name: 'a snapshot table that is too long',
    kind: 'snapshots',
    damage: (image) => image.view.setUint32(image.header.snapshotsOffset + 36, 0x7fff_ffff),
    ours: 'check',
    fixedDiffers: true,
  },
  // Bitmaps.
  {
    name: 'the table of a bitmap beyond the end',
    kind: 'bitmaps',
    damage: (image) => image.point(bitmapDirectory(image), 2 ** 40),
    same: false,
  },
  {
    name: 'a cluster of a bitmap beyond the end',
    kind: 'bitmaps',
    damage: (image) => image.point(image.u64(bitmapDirectory(image)), 2 ** 40),
    same: false,
  },
  { name: 'bitmaps that mean nothing', kind: 'bitmaps', damage: (image) => image.point(88, 0) },
  // An external data file.
  {
    name: 'misaligned data in the data file',
    kind: 'external',
    damage: (image) => image.flip(image.l2(), { set: [9] }),
    same: false,
  },
  {
    name: 'a compressed cluster in the data file',
    kind: 'external',
    damage: (image) => image.flip(image.l2(1), { set: [62], clear: [COPIED] }),
    same: false,
  },
];

function secondSnapshot(image: DamagedImage): number {
  const at = image.header.snapshotsOffset;
  const length = 40 + image.view.getUint32(at + 36) + image.view.getUint16(at + 12) + image.view.getUint16(at + 14);
  return at + Math.ceil(length / 8) * 8;
}

function bitmapDirectory(image: DamagedImage): number {
  const extension = image.header.extensions.find(({ type }) => type === ExtensionType.BITMAPS)!;
  return getU64(new DataView(extension.data.buffer, extension.data.byteOffset), 16);
}
