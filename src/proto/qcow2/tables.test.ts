import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { needs, peer, scratch } from '../../../test/harness.ts';
import { BlockError, type ErrnoName } from '../../base/errors.ts';
import { GiB, KiB, MAX_OFFSET } from '../../base/units.ts';
import {
  BITMAP_ALL_CLEAR,
  BITMAP_ALL_SET,
  BITMAP_TYPE_DIRTY,
  type BitmapEntry,
  BitmapFlags,
  bitmapEntryLength,
  encodeBitmapDirectory,
  getBitmapTableEntry,
  parseBitmapDirectory,
  setBitmapTableEntry,
} from './bitmap-directory.ts';
import { parseHeader, type Qcow2Header } from './header.ts';
import { bitmapsExtension } from './header-extensions.ts';
import { getRefcount, refcountMax, setRefcount } from './refcount-block.ts';
import { checkSnapshotL1, encodeSnapshotTable, type SnapshotEntry, SnapshotTableParser } from './snapshot-table.ts';

const CLUSTER = 64 * KiB;
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

function fails(f: () => unknown, code: ErrnoName, message: RegExp): void {
  assert.throws(f, (error: unknown) => {
    assert.ok(error instanceof BlockError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

/** A new image with a snapshot, two bitmaps and some data, and its header. */
async function imageOf(folder: string, compat: string): Promise<{ file: Uint8Array; header: Qcow2Header }> {
  const path = join(folder, 'x.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `compat=${compat}`, path, '1G');
  await peer('qemu-io', '-c', 'write 0 1M', path);
  await peer('qemu-img', 'snapshot', '-c', 'before', path);
  await peer('qemu-img', 'snapshot', '-c', 'Größe', path);
  if (compat !== '0.10') {
    await peer('qemu-img', 'bitmap', '--add', '-g', '4k', path, 'on');
    await peer('qemu-img', 'bitmap', '--add', '--disable', path, 'off');
    await peer('qemu-io', '-c', 'write 8M 64k', path);
  }
  const file = new Uint8Array(readFileSync(path));
  return { file, header: parseHeader(file.subarray(0, CLUSTER), file.length) };
}

describe('refcount blocks', () => {
  it('entries of every width are set and read, and leave their neighbours', () => {
    const order = fc.integer({ min: 0, max: 6 });
    const writes = fc.array(fc.tuple(fc.nat(63), fc.maxSafeNat()), { maxLength: 60 });
    fc.assert(
      fc.property(order, writes, fc.nat(7), (order, writes, where) => {
        const view = new DataView(new ArrayBuffer(64 * 8 + 8), where);
        const model = new Array<number>(64).fill(0);
        for (const [index, value] of writes) {
          model[index] = value % (refcountMax(order) + 1);
          setRefcount(view, index, order, model[index]!);
        }
        assert.deepEqual(
          Array.from({ length: 64 }, (_, i) => getRefcount(view, i, order)),
          model,
        );
      }),
    );
  });

  it('the largest values', () => {
    assert.deepEqual([0, 1, 2, 3, 4, 5].map(refcountMax), [1, 3, 15, 255, 65_535, 2 ** 32 - 1]);
    assert.equal(refcountMax(6), MAX_OFFSET);
    const view = new DataView(new ArrayBuffer(16));
    for (let order = 0; order <= 6; order++) {
      setRefcount(view, 1, order, refcountMax(order));
      assert.equal(getRefcount(view, 1, order), refcountMax(order));
      assert.throws(() => setRefcount(view, 1, order, refcountMax(order) + 1), /does not fit/);
      assert.throws(() => setRefcount(view, 1, order, -1), /does not fit/);
    }
  });

  it('a 64-bit refcount beyond 2^53-1 reads as 2^53-1', () => {
    const view = new DataView(new ArrayBuffer(8));
    for (const value of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      view.setBigUint64(0, value);
      assert.equal(getRefcount(view, 0, 6), MAX_OFFSET);
    }
  });

  it('entries smaller than a byte begin with its lowest bits; larger ones are big-endian', () => {
    const view = viewOf(Uint8Array.of(0b1010_0110, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde));
    assert.deepEqual(
      [0, 1, 2, 3, 4, 5, 6, 7].map((i) => getRefcount(view, i, 0)),
      [0, 1, 1, 0, 0, 1, 0, 1],
    );
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => getRefcount(view, i, 1)),
      [2, 1, 2, 2],
    );
    assert.deepEqual(
      [2, 3].map((i) => getRefcount(view, i, 2)),
      [2, 1],
    );
    assert.equal(getRefcount(view, 1, 4), 0x3456);
    assert.equal(getRefcount(view, 1, 5), 0x789abcde);
  });

  for (const bits of [1, 2, 8, 16, 64]) {
    it(`a block of ${bits} bits made by qemu-img`, needs('qemu-img'), async (t) => {
      const path = join(scratch(t), 'x.qcow2');
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `refcount_bits=${bits}`, path, '1G');
      const file = new Uint8Array(readFileSync(path));
      const header = parseHeader(file.subarray(0, CLUSTER), file.length);
      const block = Number(viewOf(file).getBigUint64(header.refcountTableOffset));
      const counts = [0, 1, 2, 3, 4].map((i) => getRefcount(viewOf(file.subarray(block)), i, header.refcountOrder));
      // Header, refcount table, block and L1 table.
      assert.deepEqual(counts, [1, 1, 1, 1, 0]);
    });
  }
});

describe('the snapshot table', () => {
  const at = (count: number, offset = 0) => ({ snapshotCount: count, snapshotsOffset: offset }) as Qcow2Header;

  function parse(table: Uint8Array, count: number, piece = table.length): SnapshotEntry[] {
    const parser = new SnapshotTableParser(at(count), table.length);
    while (parser.needed > 0) {
      parser.take(table.subarray(parser.at, parser.at + Math.max(piece, parser.needed)));
    }
    assert.equal(parser.length, table.length);
    return parser.entries;
  }

  const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
  const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 2n });
  const text = fc.string({ unit: 'grapheme', maxLength: 40 });
  const entry: fc.Arbitrary<SnapshotEntry> = fc.record(
    {
      l1Offset: fc.maxSafeNat(),
      l1Size: u32,
      id: text,
      name: text,
      dateSeconds: u32,
      dateNanoseconds: u32,
      vmClockNanoseconds: u64,
      vmStateSize: fc.maxSafeNat(),
      diskSize: fc.maxSafeNat(),
      icount: fc.option(u64, { nil: undefined }),
      unknown: fc.uint8Array({ maxLength: 40 }),
    },
    { noNullPrototype: true },
  );

  const sample = (changes: Partial<SnapshotEntry> = {}): SnapshotEntry => ({
    l1Offset: 4 * CLUSTER,
    l1Size: 2,
    id: '1',
    name: 'one',
    dateSeconds: 1,
    dateNanoseconds: 2,
    vmClockNanoseconds: 3n,
    vmStateSize: 4,
    diskSize: GiB,
    icount: undefined,
    unknown: new Uint8Array(0),
    ...changes,
  });
  /** The table of one entry with `length` bytes of extra data, which are all 1. */
  function withExtra(length: number): Uint8Array {
    const bytes = new Uint8Array(Math.ceil((44 + length) / 8) * 8);
    bytes.set(encodeSnapshotTable([sample()], 0).subarray(0, 40));
    viewOf(bytes).setUint32(36, length);
    bytes.fill(1, 40, 40 + length);
    bytes.set(new TextEncoder().encode('1one'), 40 + length);
    return bytes;
  }

  it('what is written is read back, whole or in pieces, and written again the same', () => {
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 6 }), fc.integer({ min: 1, max: 300 }), (entries, piece) => {
        const table = encodeSnapshotTable(entries, 0);
        assert.deepEqual(parse(table, entries.length, piece), entries);
        assert.deepEqual(encodeSnapshotTable(parse(table, entries.length), 0), table);
      }),
    );
  });

  it('random bytes give entries or a BlockError, within the file', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 40, maxLength: 400 }), fc.nat(20), (table, count) => {
        // Small sizes, so that some entries are whole.
        table.set([0, 1, 0, 1], 12);
        table.set([0, 0, 0], 36);
        const parser = new SnapshotTableParser(at(count), table.length);
        try {
          while (parser.needed > 0) {
            assert.ok(parser.at + parser.needed <= table.length);
            parser.take(table.subarray(parser.at));
          }
        } catch (error) {
          assert.ok(error instanceof BlockError, String(error));
        }
      }),
    );
  });

  it('extra data of every length: a field counts when it is whole', () => {
    const one = 0x0101_0101_0101_0101n;
    for (const length of [0, 7]) {
      const [read] = parse(withExtra(length), 1);
      assert.deepEqual([read!.vmStateSize, read!.diskSize, read!.icount, read!.name], [4, undefined, undefined, 'one']);
    }
    const small = withExtra(32);
    small.fill(0, 40, 50);
    small.fill(0, 40, 42);
    viewOf(small).setUint32(44, 77);
    viewOf(small).setUint32(48, 0);
    const [read] = parse(small, 1);
    assert.deepEqual([read!.vmStateSize, read!.diskSize, read!.icount], [77, 0x0101_0101, one]);
    assert.deepEqual(read!.unknown, new Uint8Array(8).fill(1));
    const short = small.slice(0, 64);
    viewOf(short).setUint32(36, 20);
    assert.deepEqual([parse(short, 1)[0]!.diskSize, parse(short, 1)[0]!.icount], [0x0101_0101, undefined]);
  });

  it('an entry without a disk size is written with that of the disk', () => {
    const old = sample({ diskSize: undefined });
    assert.deepEqual(parse(encodeSnapshotTable([old], 5 * GiB), 1), [{ ...old, diskSize: 5 * GiB }]);
  });

  it('a VM state of 4 GiB or more is in the extra data only', () => {
    const large = sample({ vmStateSize: 5 * GiB });
    const table = encodeSnapshotTable([large], 0);
    assert.equal(viewOf(table).getUint32(32), 0);
    assert.deepEqual(parse(table, 1), [large]);
  });

  it('what cannot be is refused', () => {
    const poke = (where: number, value: number): Uint8Array => {
      const table = encodeSnapshotTable([sample(), sample()], 0);
      viewOf(table).setUint32(72 + where, value);
      return table;
    };
    fails(() => parse(poke(0, 2 ** 21), 2), 'EINVAL', /entry 1 of the snapshot table has l1_table_offset of 2\^53/);
    fails(() => parse(poke(36, 1025), 2), 'EINVAL', /entry 1 .* extra_data_size 1025/);
    fails(() => parse(poke(36, 0xffff_ffff), 2), 'EINVAL', /extra_data_size 4294967295/);
    fails(() => parse(poke(36, 1024), 2), 'EINVAL', /entry 1 .* beyond the end of the file/);
    fails(() => parse(poke(12, 0xffff_0000), 2), 'EINVAL', /entry 1 .* beyond the end of the file/);
    fails(() => parse(poke(40, 2 ** 31), 2), 'EINVAL', /entry 1 .* vm_state_size/);
    fails(() => parse(poke(48, 2 ** 31), 2), 'EINVAL', /entry 1 .* disk_size/);
    fails(() => parse(poke(0, 0), 3), 'EINVAL', /entry 2 .* beyond the end of the file/);
    fails(() => new SnapshotTableParser(at(65_536, GiB), GiB), 'EINVAL', /entry 0 .* beyond the end of the file/);
  });

  it('no more of the file is taken than it has, though the bytes are padded', () => {
    const table = withExtra(24);
    const padded = new Uint8Array(4096);
    padded.set(table);
    viewOf(padded).setUint16(14, 500);
    const parser = new SnapshotTableParser(at(1), table.length);
    fails(() => parser.take(padded), 'EINVAL', /beyond the end of the file/);
  });

  it('a table of more than 64 MiB is refused, read or written', () => {
    const big = sample({ name: 'x'.repeat(65_000) });
    const many = new Array<SnapshotEntry>(1040).fill(big);
    fails(() => encodeSnapshotTable(many, 0), 'EINVAL', /67/);
    const one = encodeSnapshotTable([big], 0);
    const parser = new SnapshotTableParser(at(65_536), GiB);
    fails(
      () => {
        for (let i = 0; i < 1040; i++) parser.take(one);
      },
      'EINVAL',
      /largest table/,
    );
    fails(() => encodeSnapshotTable(new Array<SnapshotEntry>(65_537).fill(sample()), 0), 'EINVAL', /65537 snapshots/);
    fails(() => encodeSnapshotTable([sample({ name: 'x'.repeat(65_536) })], 0), 'EINVAL', /a name has 65536/);
    fails(() => encodeSnapshotTable([sample({ id: 'x'.repeat(65_536) })], 0), 'EINVAL', /an id has 65536/);
    fails(() => encodeSnapshotTable([sample({ unknown: new Uint8Array(1001) })], 0), 'EINVAL', /extra data has 1025/);
  });

  it('the L1 table of a snapshot is looked at before it is used', () => {
    checkSnapshotL1(sample(), CLUSTER);
    checkSnapshotL1(sample({ l1Size: 0, l1Offset: 0 }), CLUSTER);
    const bad: readonly [Partial<SnapshotEntry>, RegExp][] = [
      [{ l1Size: 2 ** 22 + 1 }, /snapshot '1': l1_size 4194305/],
      [{ l1Offset: 0 }, /l1_table_offset is 0/],
      [{ l1Offset: CLUSTER + 512 }, /l1_table_offset 66048/],
      [{ l1Offset: 2 ** 53 - CLUSTER, l1Size: 8192 }, /l1_table_offset .* too large/],
    ];
    for (const [changes, message] of bad) fails(() => checkSnapshotL1(sample(changes), CLUSTER), 'EINVAL', message);
  });

  for (const compat of ['0.10', '1.1']) {
    it(`a table made by qemu-img, compat=${compat}`, needs('qemu-img', 'qemu-io'), async (t) => {
      const { file, header } = await imageOf(scratch(t), compat);
      const parser = new SnapshotTableParser(header, file.length);
      while (parser.needed > 0) parser.take(file.subarray(parser.at, parser.at + parser.needed));
      const { entries } = parser;
      assert.deepEqual(
        entries.map(({ id, name, diskSize }) => [id, name, diskSize]),
        [
          ['1', 'before', GiB],
          ['2', 'Größe', GiB],
        ],
      );
      for (const one of entries) checkSnapshotL1(one, CLUSTER);
      const table = encodeSnapshotTable(entries, header.size);
      assert.equal(table.length, parser.length);
      assert.deepEqual(table, file.slice(header.snapshotsOffset, header.snapshotsOffset + table.length));
    });
  }
});

describe('the bitmap directory', () => {
  const sample = (changes: Partial<BitmapEntry> = {}): BitmapEntry => ({
    tableOffset: 4 * CLUSTER,
    tableSize: 1,
    flags: BitmapFlags.AUTO,
    type: BITMAP_TYPE_DIRTY,
    granularityBits: 16,
    extraData: new Uint8Array(0),
    name: 'b0',
    ...changes,
  });
  const entry: fc.Arbitrary<BitmapEntry> = fc.record(
    {
      tableOffset: fc.integer({ min: 1, max: 2 ** 36 }).map((n) => n * CLUSTER),
      tableSize: fc.integer({ min: 1, max: 8192 }),
      flags: fc.nat(7),
      type: fc.constant(BITMAP_TYPE_DIRTY),
      granularityBits: fc.integer({ min: 9, max: 31 }),
      extraData: fc.uint8Array({ maxLength: 40 }),
      name: fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 }),
    },
    { noNullPrototype: true },
  );
  const entries = fc.uniqueArray(entry, { maxLength: 6, selector: ({ name }) => name });

  it('what is written is read back, and written again the same', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const bytes = encodeBitmapDirectory(list, CLUSTER);
        assert.equal(
          bytes.length,
          list.reduce((sum, one) => sum + bitmapEntryLength(one), 0),
        );
        const read = parseBitmapDirectory(bytes, list.length, CLUSTER);
        assert.deepEqual(read, list);
        assert.deepEqual(encodeBitmapDirectory(read, CLUSTER), bytes);
      }),
    );
  });

  it('random bytes give entries or a BlockError', () => {
    fc.assert(
      fc.property(entries, fc.array(fc.tuple(fc.nat(200), fc.nat(255))), fc.nat(8), (list, pokes, count) => {
        const bytes = encodeBitmapDirectory(list, CLUSTER);
        for (const [at, value] of pokes) bytes[at] = value;
        try {
          parseBitmapDirectory(bytes, count, CLUSTER);
        } catch (error) {
          assert.ok(error instanceof BlockError, String(error));
          assert.match(error.message, /^Could not read the bitmaps: entry /);
        }
      }),
    );
  });

  it('what cannot be is refused', () => {
    const poke = (change: (view: DataView) => void, count = 2): BitmapEntry[] => {
      const bytes = encodeBitmapDirectory([sample(), sample({ name: 'b1' })], CLUSTER);
      change(viewOf(bytes.subarray(32)));
      return parseBitmapDirectory(bytes, count, CLUSTER);
    };
    const nothing = (): void => undefined;
    assert.equal(poke(nothing).length, 2);
    const cases: readonly [(view: DataView) => void, ErrnoName, RegExp][] = [
      [(view) => view.setUint32(4, 0), 'EINVAL', /entry 1 .* bitmap_table_offset \(0\)/],
      [(view) => view.setUint32(4, 512), 'EINVAL', /bitmap_table_offset \(512\)/],
      [(view) => view.setUint32(0, 2 ** 31), 'EINVAL', /bitmap_table_offset$/],
      [(view) => view.setUint32(8, 0), 'EINVAL', /bitmap_table_size \(0\)/],
      [(view) => view.setUint32(8, 8193), 'EINVAL', /bitmap_table_size \(8193\)/],
      [(view) => view.setUint32(8, 0xffff_ffff), 'EINVAL', /bitmap_table_size/],
      [(view) => view.setUint32(12, 8), 'ENOTSUP', /flags 0x8/],
      [(view) => view.setUint32(12, 0x8000_0000), 'ENOTSUP', /flags 0x80000000/],
      [(view) => view.setUint8(16, 0), 'ENOTSUP', /type 0/],
      [(view) => view.setUint8(16, 2), 'ENOTSUP', /type 2/],
      [(view) => view.setUint8(17, 8), 'EINVAL', /granularity_bits 8/],
      [(view) => view.setUint8(17, 32), 'EINVAL', /granularity_bits 32/],
      [(view) => view.setUint16(18, 0), 'EINVAL', /name_size 0/],
      [(view) => view.setUint16(18, 1024), 'EINVAL', /name_size 1024/],
      [(view) => view.setUint16(18, 100), 'EINVAL', /beyond the end of the directory/],
      [(view) => view.setUint32(20, 8), 'EINVAL', /extra_data_size 8/],
      [(view) => view.setUint32(20, 0xffff_ffff), 'EINVAL', /extra_data_size 4294967295/],
      [(view) => view.setUint8(25, 0x30), 'EINVAL', /the name of another, 'b0'/],
    ];
    for (const [change, code, message] of cases) fails(() => poke(change), code, message);
    fails(() => poke(nothing, 3), 'EINVAL', /entry 2 .* beyond the end of the directory/);
    fails(() => poke(nothing, 1), 'EINVAL', /32 bytes are left/);
  });

  it('what could not be read back is not written', () => {
    const bad: readonly [Partial<BitmapEntry>, RegExp][] = [
      [{ name: '' }, /a name has 0 bytes/],
      [{ name: 'ä'.repeat(512) }, /a name has 1024 bytes/],
      [{ tableOffset: 512 }, /bitmap 'b0' has an invalid bitmap_table_offset/],
      [{ tableSize: 0 }, /bitmap_table_size/],
      [{ granularityBits: 40 }, /granularity_bits/],
    ];
    for (const [changes, message] of bad)
      fails(() => encodeBitmapDirectory([sample(changes)], CLUSTER), 'EINVAL', message);
    const many = new Array<BitmapEntry>(65_536).fill(sample());
    fails(() => encodeBitmapDirectory(many, CLUSTER), 'ENOSPC', /65536 bitmaps/);
  });

  it('table entries', () => {
    const view = new DataView(new ArrayBuffer(24));
    for (const value of [BITMAP_ALL_CLEAR, BITMAP_ALL_SET, CLUSTER, 2 ** 53 - CLUSTER]) {
      setBitmapTableEntry(view, 1, value);
      assert.equal(getBitmapTableEntry(view, 1, CLUSTER), value);
    }
    const bad: readonly [number, number][] = [
      [0, 2],
      [0, 0x100],
      [0, 512],
      [0, CLUSTER + 1],
      [0x0100_0000, 0],
      [0x8000_0000, CLUSTER],
    ];
    for (const [high, low] of bad) {
      view.setUint32(16, high);
      view.setUint32(20, low);
      fails(() => getBitmapTableEntry(view, 2, CLUSTER), 'EINVAL', /entry 2 of a bitmap table/);
    }
  });

  it('a directory made by qemu-img', needs('qemu-img', 'qemu-io'), async (t) => {
    const { file, header } = await imageOf(scratch(t), '1.1');
    const place = bitmapsExtension(header)!;
    const bytes = file.slice(place.directoryOffset, place.directoryOffset + place.directorySize);
    const list = parseBitmapDirectory(bytes, place.count, CLUSTER);
    assert.deepEqual(list.map(({ name, flags, granularityBits }) => [name, flags, granularityBits]).sort(), [
      ['off', 0, 16],
      ['on', BitmapFlags.AUTO, 12],
    ]);
    assert.deepEqual(encodeBitmapDirectory(list, CLUSTER), bytes);
    const [on] = list.filter(({ name }) => name === 'on');
    const bits = getBitmapTableEntry(viewOf(file.subarray(on!.tableOffset)), 0, CLUSTER);
    // Granules of 4 KiB, from 8 MiB on: bit 2048.
    assert.deepEqual(file.slice(bits + 255, bits + 259), Uint8Array.of(0, 0xff, 0xff, 0));
  });
});
