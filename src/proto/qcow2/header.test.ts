import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { BlockError, type ErrnoName } from '../../base/errors.ts';
import { GiB, KiB } from '../../base/units.ts';
import { setU64 } from '../nbd/words.ts';
import { Autoclear, Crypt, ExtensionType, FULL_HEADER_LENGTH, Incompatible } from './constants.ts';
import { defaultFeatureNames, featureName } from './features.ts';
import { clusterSizeOf, encodeHeader, parseHeader, type Qcow2Header } from './header.ts';
import {
  backingFormat,
  bitmapsExtension,
  dataFileName,
  encryptionExtension,
  extension,
  setExtension,
} from './header-extensions.ts';
import { decodeName, encodeName } from './text.ts';

const CLUSTER = 64 * KiB;

function sample(changes: Partial<Qcow2Header> = {}): Qcow2Header {
  return {
    version: 3,
    clusterBits: 16,
    size: GiB,
    cryptMethod: Crypt.NONE,
    l1Size: 2,
    l1Offset: 3 * CLUSTER,
    refcountTableOffset: CLUSTER,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible: 0,
    compatible: 0n,
    autoclear: 0n,
    refcountOrder: 4,
    compressionType: 0,
    unknown: new Uint8Array(0),
    extensions: [],
    backingFile: undefined,
    ...changes,
  };
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const text = (value: string): Uint8Array => new TextEncoder().encode(value);

/** The first cluster of an image with this header, changed by `poke`. */
function cluster(header: Qcow2Header, poke: (view: DataView) => void = () => undefined): Uint8Array {
  const bytes = new Uint8Array(2 ** header.clusterBits);
  bytes.set(encodeHeader(header));
  poke(viewOf(bytes));
  return bytes;
}

function parsed(header: Qcow2Header, poke?: (view: DataView) => void): Qcow2Header {
  return parseHeader(cluster(header, poke), 16 * CLUSTER);
}

function fails(f: () => unknown, code: ErrnoName, message: RegExp): void {
  assert.throws(f, (error: unknown) => {
    assert.ok(error instanceof BlockError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    return true;
  });
}

function words(...values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  values.forEach((value, i) => {
    setU64(viewOf(bytes), i * 8, value);
  });
  return bytes;
}

const bitmaps = (count: number, size: number, offset: number) => words(count * 2 ** 32, size, offset);

describe('qcow2 header: round trips', () => {
  const bytes = (maxLength: number) => fc.uint8Array({ maxLength });
  const plain = { noNullPrototype: true } as const;
  const extensionOf = fc.record({ type: fc.integer({ min: 1, max: 1000 }), data: bytes(40) }, plain);
  const headers = fc.record(
    {
      version: fc.constant<3>(3),
      clusterBits: fc.integer({ min: 14, max: 21 }),
      size: fc.integer({ min: 0, max: 2 ** 26 }),
      cryptMethod: fc.constantFrom(Crypt.NONE, Crypt.AES),
      l1Size: fc.integer({ min: 8, max: 2 ** 22 }),
      l1Offset: fc.integer({ min: 1, max: 2 ** 31 }).map((n) => n * 2 ** 21),
      refcountTableOffset: fc.integer({ min: 1, max: 2 ** 31 }).map((n) => n * 2 ** 21),
      refcountTableClusters: fc.integer({ min: 1, max: 4 }),
      snapshotCount: fc.integer({ min: 0, max: 65_536 }),
      snapshotsOffset: fc.integer({ min: 1, max: 2 ** 31 }).map((n) => n * 2 ** 21),
      incompatible: fc.integer({ min: 0, max: 3 }),
      compatible: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      autoclear: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map((n) => n & ~3n),
      refcountOrder: fc.integer({ min: 0, max: 6 }),
      compressionType: fc.constant<0>(0),
      unknown: fc.integer({ min: 0, max: 8 }).map((n) => Uint8Array.from({ length: n * 8 }, (_, i) => i)),
      extensions: fc.array(extensionOf, { maxLength: 8 }),
      backingFile: fc.option(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 60 }), { nil: undefined }),
    },
    plain,
  );

  it('what is written is read back, and written again the same', () => {
    fc.assert(
      fc.property(headers, (header) => {
        fc.pre(header.backingFile?.includes('\0') !== true);
        const read = parsed(header);
        assert.deepEqual(read, header);
        assert.deepEqual(encodeHeader(read), encodeHeader(header));
      }),
    );
  });

  it('damaged bytes give a header or a BlockError, and nothing else', () => {
    const whole = cluster(sample({ extensions: [{ type: ExtensionType.FEATURE_NAMES, data: defaultFeatureNames() }] }));
    const pokes = fc.array(fc.tuple(fc.nat(255), fc.nat(255)), { minLength: 1, maxLength: 6 });
    let refused = 0;
    fc.assert(
      fc.property(pokes, fc.nat(2 * CLUSTER), (changes, length) => {
        const bytes = whole.slice();
        for (const [at, value] of changes) bytes[at] = value;
        try {
          parseHeader(bytes, length);
        } catch (error) {
          assert.ok(error instanceof BlockError, String(error));
          assert.match(error.message, /^Could not open the image: /);
          refused++;
        }
      }),
    );
    assert.ok(refused > 0);
  });

  it('version 2 is read and written with 72 bytes, extensions behind them', () => {
    const header = sample({ version: 2, backingFile: 'base.img' });
    setExtension(header, ExtensionType.BACKING_FORMAT, text('raw'));
    const bytes = encodeHeader(header);
    assert.equal(viewOf(bytes).getUint32(72), ExtensionType.BACKING_FORMAT);
    assert.deepEqual(parseHeader(bytes, CLUSTER), header);
    for (const change of [{ incompatible: 1 }, { compatible: 1n }, { autoclear: 4n }, { refcountOrder: 3 }]) {
      fails(() => encodeHeader({ ...header, ...change }), 'EINVAL', /version 2/);
    }
  });

  it('a version 3 header of 104 bytes has no compression type', () => {
    const read = parsed(sample(), (view) => view.setUint32(100, 104));
    assert.equal(read.compressionType, 0);
    assert.deepEqual(read.unknown, new Uint8Array(0));
  });

  it('unknown fields and extensions stay as they are, in order', () => {
    const header = sample({
      unknown: Uint8Array.from({ length: 16 }, (_, i) => i + 1),
      extensions: [
        { type: 0x1234, data: text('first') },
        { type: ExtensionType.FEATURE_NAMES, data: defaultFeatureNames() },
        { type: 0x1234, data: text('again') },
      ],
    });
    assert.deepEqual(parsed(header), header);
  });

  it('shared memory is read, and nothing of it is kept', () => {
    const shared = new Uint8Array(new SharedArrayBuffer(CLUSTER));
    const header = sample({ backingFile: 'ä', extensions: [{ type: 7, data: text('x') }] });
    shared.set(encodeHeader(header));
    const read = parseHeader(shared, CLUSTER);
    shared.fill(0);
    assert.deepEqual(read, header);
  });

  it('a header that does not fit in a cluster is refused, and so is a name that cannot be', () => {
    const small = { clusterBits: 9, l1Size: 65_536, l1Offset: 1024, refcountTableOffset: 512 };
    const header = sample({ ...small, backingFile: 'x'.repeat(512 - FULL_HEADER_LENGTH - 8) });
    assert.equal(encodeHeader(header).length, 512);
    header.backingFile += 'x';
    fails(() => encodeHeader(header), 'ENOSPC', /513 bytes, and a cluster 512/);
    fails(() => encodeHeader(sample({ backingFile: 'x'.repeat(1024) })), 'EINVAL', /backing file name/);
    fails(() => encodeHeader(sample({ backingFile: 'x\0y' })), 'EINVAL', /NUL/);
  });
});

describe('qcow2 header: what cannot be is refused', () => {
  const cases: readonly [string, (view: DataView) => void, ErrnoName, RegExp][] = [
    ['magic', (view) => view.setUint32(0, 0x514649fa), 'EINVAL', /not in qcow2 format/],
    ['version 1', (view) => view.setUint32(4, 1), 'ENOTSUP', /version 1/],
    ['version 4', (view) => view.setUint32(4, 4), 'ENOTSUP', /version 4/],
    ['clusters of 256 bytes', (view) => view.setUint32(20, 8), 'EINVAL', /cluster_bits is 8/],
    ['clusters of 4 MiB', (view) => view.setUint32(20, 22), 'EINVAL', /cluster_bits is 22/],
    ['cluster_bits 0', (view) => view.setUint32(20, 0), 'EINVAL', /cluster_bits is 0/],
    ['cluster_bits 63', (view) => view.setUint32(20, 63), 'EINVAL', /cluster_bits is 63/],
    ['a short header', (view) => view.setUint32(100, 96), 'EINVAL', /header_length is 96/],
    ['an odd header', (view) => view.setUint32(100, 105), 'EINVAL', /header_length is 105/],
    ['a header beyond its cluster', (view) => view.setUint32(100, CLUSTER + 8), 'EINVAL', /header_length is 65544/],
    ['a huge header', (view) => view.setUint32(100, 0xffff_fff8), 'EINVAL', /header_length is 4294967288/],
    ['an unnamed feature', (view) => view.setUint8(72, 0x80), 'ENOTSUP', /incompatible feature: 0x8000000000000000$/],
    ['unnamed features', (view) => view.setUint16(78, 0x60), 'ENOTSUP', /Unknown incompatible feature: 0x60$/],
    ['a refcount order', (view) => view.setUint32(96, 7), 'EINVAL', /refcount_order is 7/],
    ['a huge refcount order', (view) => view.setUint32(96, 0xffff_ffff), 'EINVAL', /refcount_order/],
    ['a crypt method', (view) => view.setUint32(32, 3), 'ENOTSUP', /crypt_method 3/],
    ['a disk of 2^53', (view) => view.setUint32(24, 2 ** 21), 'EFBIG', /size is 2\^53/],
    ['a negative size', (view) => view.setUint32(24, 0xffff_ffff), 'EFBIG', /size is 2\^53/],
    ['a short L1 table', (view) => view.setUint32(36, 1), 'EINVAL', /l1_size 1 is too small/],
    ['no L1 table', (view) => view.setUint32(36, 0), 'EINVAL', /l1_size 0 is too small/],
    ['an L1 table over 32 MiB', (view) => view.setUint32(36, 2 ** 22 + 1), 'EINVAL', /l1_size 4194305 is too large/],
    ['the largest L1 table', (view) => view.setUint32(36, 0xffff_ffff), 'EINVAL', /l1_size 4294967295 is too large/],
    ['an unaligned L1 table', (view) => view.setUint32(44, 0x3_0001), 'EINVAL', /l1_table_offset 196609/],
    ['an L1 table over the header', (view) => view.setUint32(44, 0), 'EINVAL', /l1_table_offset is 0/],
    ['an L1 table at 2^63', (view) => view.setUint32(40, 2 ** 31), 'EINVAL', /l1_table_offset is 2\^53/],
    ['no refcount table', (view) => view.setUint32(56, 0), 'EINVAL', /refcount_table_clusters is 0/],
    ['a long refcount table', (view) => view.setUint32(56, 129), 'EINVAL', /refcount_table_clusters 129/],
    ['a huge refcount table', (view) => view.setUint32(56, 0xffff_ffff), 'EINVAL', /refcount_table_clusters/],
    ['an unaligned refcount table', (view) => view.setUint32(52, 0x1_0200), 'EINVAL', /refcount_table_offset 66048/],
    ['a refcount table over the header', (view) => view.setUint32(52, 0), 'EINVAL', /refcount_table_offset is 0/],
    ['a refcount table at 2^63', (view) => view.setUint32(48, 2 ** 31), 'EINVAL', /refcount_table_offset is 2\^53/],
    ['too many snapshots', (view) => view.setUint32(60, 65_537), 'EINVAL', /nb_snapshots 65537/],
    ['far too many snapshots', (view) => view.setUint32(60, 0xffff_ffff), 'EINVAL', /nb_snapshots 4294967295/],
    ['snapshots over the header', (view) => view.setUint32(60, 1), 'EINVAL', /snapshots_offset is 0/],
    ['snapshots at 2^63', (view) => view.setUint32(64, 2 ** 31), 'EINVAL', /snapshots_offset is 2\^53/],
    ['zstd without its bit', (view) => view.setUint8(104, 1), 'EINVAL', /compression_type is 1.*not set/],
    ['the bit without zstd', (view) => view.setUint8(79, 8), 'EINVAL', /compression_type is 0.*is set/],
    ['a compression type', (view) => view.setUint8(104, 2), 'ENOTSUP', /compression_type 2/],
    ['raw external data without a file', (view) => view.setUint8(95, 2), 'EINVAL', /autoclear_features/],
    ['a name over the header', (view) => view.setUint32(12, 104), 'EINVAL', /backing_file_offset 104/],
    ['a name beyond the cluster', (view) => view.setUint32(12, CLUSTER + 1), 'EINVAL', /backing_file_offset 65537/],
    ['a name at 2^63', (view) => view.setUint32(8, 2 ** 31), 'EINVAL', /backing_file_offset is not/],
  ];
  for (const [name, poke, code, message] of cases) {
    it(name, () => fails(() => parsed(sample(), poke), code, message));
  }

  it('unaligned snapshots, and those that would end beyond 2^53', () => {
    const header = sample({ snapshotCount: 1, snapshotsOffset: 5 * CLUSTER });
    assert.deepEqual(parsed(header), header);
    fails(() => parsed(header, (view) => view.setUint32(68, 0x5_0100)), 'EINVAL', /snapshots_offset 327936/);
    fails(() => parsed({ ...header, snapshotsOffset: 2 ** 53 - CLUSTER }), 'EINVAL', /snapshots_offset .* too large/);
    fails(
      () => parsed(sample({ l1Offset: 2 ** 53 - CLUSTER, l1Size: 8192 })),
      'EINVAL',
      /l1_table_offset .* too large/,
    );
  });

  it('the size of a backing file name', () => {
    const header = sample({ backingFile: 'base' });
    for (const size of [1024, 0x7fff_ffff, 0xffff_ffff]) {
      fails(() => parsed(header, (view) => view.setUint32(16, size)), 'EINVAL', /backing_file_size/);
    }
    const last = (view: DataView): void => {
      view.setUint32(12, CLUSTER - 3);
      view.setUint32(16, 4);
    };
    fails(() => parsed(header, last), 'EINVAL', /backing_file_size is 4; 3/);
    fails(() => parsed(header, (view) => view.setUint32(16, 5)), 'EINVAL', /backing file name has a NUL/);
    assert.equal(parsed(header, (view) => view.setUint32(16, 0)).backingFile, undefined);
  });

  it('extended L2 entries in small clusters', () => {
    const header = sample({ clusterBits: 13, l1Size: 1024, incompatible: Incompatible.EXTENDED_L2 });
    fails(() => parsed(header), 'EINVAL', /cluster_bits is 13; extended L2/);
    // Half as many entries in a table: twice as many tables.
    fails(
      () => parsed(sample({ incompatible: Incompatible.EXTENDED_L2 })),
      'EINVAL',
      /l1_size 2 is too small.*needs 4/,
    );
  });

  it('raw external data with a backing file', () => {
    const raw = BigInt(Autoclear.DATA_FILE_RAW);
    const header = sample({ incompatible: Incompatible.DATA_FILE, autoclear: raw });
    assert.equal(parsed(header).autoclear, raw);
    fails(() => parsed({ ...header, backingFile: 'b' }), 'EINVAL', /backing file/);
  });

  it('a file that is cut off', () => {
    const bytes = cluster(sample({ backingFile: 'base.img' }));
    fails(() => clusterSizeOf(bytes.subarray(0, 23)), 'EINVAL', /not in qcow2 format/);
    fails(() => parseHeader(bytes.subarray(0, 100), 100), 'EINVAL', /cut off after 100 bytes/);
    fails(() => parseHeader(bytes, 100), 'EINVAL', /cut off after 100 bytes/);
    fails(() => parseHeader(bytes, 106), 'EINVAL', /header_length is 112/);
    fails(() => parseHeader(bytes, 125), 'EINVAL', /backing_file_size/);
    assert.equal(parseHeader(bytes, 128).backingFile, 'base.img');
    assert.equal(parseHeader(cluster(sample()), 112).size, GiB);
  });

  it('a table beyond the end of the file is for a repair to see', () => {
    assert.equal(parseHeader(cluster(sample({ l1Offset: 2 ** 40 })), CLUSTER).l1Offset, 2 ** 40);
  });
});

describe('qcow2 header: extensions and features', () => {
  const withOne = (type: number, data: Uint8Array, changes: Partial<Qcow2Header> = {}) =>
    sample({ extensions: [{ type, data }], ...changes });

  it('an extension beyond the cluster, or into the backing file name', () => {
    const header = withOne(0x99, text('12345678'), { backingFile: 'base' });
    fails(
      () => parsed(header, (view) => view.setUint32(116, 0x7fff_ffff)),
      'EINVAL',
      /extension '0x99' has 2147483647/,
    );
    fails(() => parsed(header, (view) => view.setUint32(116, 0xffff_ffff)), 'EINVAL', /extension '0x99'/);
    fails(() => parsed(header, (view) => view.setUint32(116, 17)), 'EINVAL', /has 17 bytes, and there is room for 16/);
  });

  it('an extension whose head is cut off by the name', () => {
    const header = sample({ backingFile: 'base' });
    const move = (view: DataView): void => {
      view.setUint32(12, FULL_HEADER_LENGTH + 4);
      view.setUint32(FULL_HEADER_LENGTH, 0x77);
    };
    fails(() => parsed(header, move), 'EINVAL', /header extension at 112 is cut off/);
  });

  it('a known extension that is there twice', () => {
    const one = { type: ExtensionType.BACKING_FORMAT, data: text('raw') };
    fails(() => parsed(sample({ extensions: [one, one] })), 'EINVAL', /'backing format' is there twice/);
  });

  it('set, replace and remove', () => {
    const header = withOne(1, text('a'));
    setExtension(header, 2, text('b'));
    setExtension(header, 1, text('c'));
    assert.deepEqual(
      header.extensions.map(({ type }) => type),
      [1, 2],
    );
    assert.deepEqual(extension(header, 1), text('c'));
    setExtension(header, 1, undefined);
    setExtension(header, 1, undefined);
    assert.deepEqual(header.extensions, [{ type: 2, data: text('b') }]);
    assert.equal(extension(header, 1), undefined);
  });

  it('the format of the backing file', () => {
    const type = ExtensionType.BACKING_FORMAT;
    assert.equal(backingFormat(sample()), undefined);
    assert.equal(backingFormat(parsed(withOne(type, text('qcow2')))), 'qcow2');
    fails(() => parsed(withOne(type, text('x'.repeat(16)))), 'EINVAL', /'backing format' is a name of 16 bytes/);
    fails(() => parsed(withOne(type, text('a\0b'))), 'EINVAL', /'backing format' is a name with a NUL/);
  });

  it('the name of the data file counts only where there is one', () => {
    const type = ExtensionType.DATA_FILE;
    const has = { incompatible: Incompatible.DATA_FILE };
    assert.equal(dataFileName(parsed(withOne(type, text('d.raw'), has))), 'd.raw');
    assert.equal(dataFileName(parsed(withOne(type, text('d.raw')))), undefined);
    assert.equal(dataFileName(parsed(sample(has))), undefined);
    fails(() => parsed(withOne(type, text('x'.repeat(4096)), has)), 'EINVAL', /'data file' is a name of 4096/);
    fails(() => parsed(withOne(type, text('a\0b'), has)), 'EINVAL', /'data file' is a name with a NUL/);
  });

  it('bitmaps count only where the autoclear bit vouches for them', () => {
    const type = ExtensionType.BITMAPS;
    const good = bitmaps(2, 64, 5 * CLUSTER);
    const auto = { autoclear: BigInt(Autoclear.BITMAPS) };
    assert.deepEqual(bitmapsExtension(parsed(withOne(type, good, auto))), {
      count: 2,
      directorySize: 64,
      directoryOffset: 5 * CLUSTER,
    });
    assert.equal(bitmapsExtension(parsed(withOne(type, good))), undefined);
    assert.equal(bitmapsExtension(parsed(withOne(type, text('stale')))), undefined);
    const reserved = good.slice();
    reserved[7] = 1;
    const bad: readonly [Uint8Array, RegExp][] = [
      [good.subarray(0, 16), /'bitmaps' has 16 bytes/],
      [reserved, /reserved field/],
      [bitmaps(0, 64, 5 * CLUSTER), /nb_bitmaps 0/],
      [bitmaps(65_536, 2 ** 25, 5 * CLUSTER), /nb_bitmaps 65536/],
      [bitmaps(2, 47, 5 * CLUSTER), /bitmap_directory_size \(47\)/],
      [bitmaps(2, 1024 * 65_535 + 1, 5 * CLUSTER), /bitmap_directory_size/],
      [bitmaps(2, 64, 5 * CLUSTER + 512), /bitmap_directory_offset/],
      [bitmaps(2, 64, 0), /bitmap_directory_offset \(0\)/],
    ];
    for (const [data, message] of bad) fails(() => parsed(withOne(type, data, auto)), 'EINVAL', message);
    const far = good.slice();
    far[16] = 0x80;
    fails(() => parsed(withOne(type, far, auto)), 'EINVAL', /bitmap_directory_offset$/);
  });

  it('the encryption header goes with LUKS, and with nothing else', () => {
    const type = ExtensionType.ENCRYPTION;
    const luks = { cryptMethod: Crypt.LUKS };
    const good = words(4 * CLUSTER, 2 ** 21);
    assert.deepEqual(encryptionExtension(parsed(withOne(type, good, luks))), { offset: 4 * CLUSTER, length: 2 ** 21 });
    assert.equal(encryptionExtension(sample()), undefined);
    fails(() => parsed(sample(luks)), 'EINVAL', /'encryption header' is missing/);
    fails(() => parsed(withOne(type, good)), 'EINVAL', /does not go with crypt_method 0/);
    fails(() => parsed(withOne(type, good.subarray(0, 8), luks)), 'EINVAL', /'encryption header' has 8 bytes/);
    fails(() => parsed(withOne(type, words(1, 592), luks)), 'EINVAL', /'encryption header' has an invalid offset/);
    fails(() => parsed(withOne(type, words(CLUSTER, 0), luks)), 'EINVAL', /'encryption header' has an invalid length/);
    fails(() => parsed(withOne(type, words(CLUSTER, 2 ** 25), luks)), 'EINVAL', /invalid length \(33554432\)/);
  });

  it('an unknown feature is called what the image calls it', () => {
    const table = defaultFeatureNames();
    table.set([0, 6, ...text('time travel\u001b[0m')], 48);
    table.set([0, 0, ...text('harmless'), 0], 0);
    const header = withOne(ExtensionType.FEATURE_NAMES, table);
    assert.equal(featureName(header, 'incompatible', 6), 'time travel?[0m');
    assert.equal(featureName(header, 'incompatible', 0), 'dirty bit');
    assert.equal(featureName(header, 'autoclear', 6), undefined);
    assert.equal(featureName(sample(), 'compatible', 0), 'lazy refcounts');
    assert.equal(
      featureName(withOne(ExtensionType.FEATURE_NAMES, table.subarray(0, 95)), 'incompatible', 6),
      undefined,
    );
    const poke = (view: DataView): void => view.setUint16(78, 0x140);
    fails(() => parsed(header, poke), 'ENOTSUP', /: time travel\?\[0m, Unknown incompatible feature: 0x100$/);
  });

  it('names are kept whatever bytes they are', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 30 }), (bytes) => {
        assert.deepEqual(encodeName(decodeName(bytes)), bytes);
      }),
    );
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme' }), (name) => {
        assert.equal(decodeName(encodeName(name)), name);
        assert.deepEqual(encodeName(name), text(name));
      }),
    );
  });
});
