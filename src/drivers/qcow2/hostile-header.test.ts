/** Every field of the header at its edges: refused by an error that names a field, or opened; and what QEMU does. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { KiB } from '../../base/units.ts';
import { registerQcow2 } from './testing.ts';
import { fileState, Poke, qemuUses, type Row, type Template, tryRows, Workshop } from './testing-hostile.ts';

const FIELDS: readonly (readonly [name: string, at: number, bytes: 1 | 4 | 8])[] = [
  ['magic', 0, 4],
  ['version', 4, 4],
  ['backing_file_offset', 8, 8],
  ['backing_file_size', 16, 4],
  ['cluster_bits', 20, 4],
  ['size', 24, 8],
  ['crypt_method', 32, 4],
  ['l1_size', 36, 4],
  ['l1_table_offset', 40, 8],
  ['refcount_table_offset', 48, 8],
  ['refcount_table_clusters', 56, 4],
  ['nb_snapshots', 60, 4],
  ['snapshots_offset', 64, 8],
  ['incompatible_features', 72, 8],
  ['compatible_features', 80, 8],
  ['autoclear_features', 88, 8],
  ['refcount_order', 96, 4],
  ['header_length', 100, 4],
  ['compression_type', 104, 1],
];
const EDGES: readonly bigint[] = [
  ...[0n, 1n, 2n, 8n, 9n, 21n, 22n, 0xffn, 0xffffn, 1n << 31n, (1n << 31n) - 1n, (1n << 32n) - 1n],
  ...[(1n << 53n) - 1n, 1n << 53n, 1n << 56n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];
const IMAGE: Template = { snapshots: 1 };
const PLAIN: Template = {};

/** Puts an extension at the beginning of the header's extensions. */
function extend(poke: Poke, type: number, data: readonly number[], length = data.length): void {
  poke.set(112, new Uint8Array(200)).u32(112, type).u32(116, length).set(120, Uint8Array.from(data));
}
const u32s = (...values: number[]): number[] =>
  values.flatMap((value) => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]);

const BITMAPS = 0x23852875;
const ENCRYPTION = 0x0537be77;

const EXTENSIONS: readonly Row[] = [
  {
    name: 'an unknown extension of 0x7fffffff bytes',
    template: PLAIN,
    poke: (p) => extend(p, 0x12345678, [], 0x7fffffff),
    refused: /header extension '0x[0-9a-f]+' has 2147483647 bytes, and there is room for 904/,
  },
  {
    name: 'an extension that ends one byte late',
    template: PLAIN,
    poke: (p) => extend(p, 0x12345678, [], KiB - 120 + 1),
    refused: /header extension '0x[0-9a-f]+' has 905 bytes, and there is room for 904/,
  },
  { name: 'an extension without an end', template: PLAIN, poke: (p) => extend(p, 0x12345678, [], KiB - 120) },
  {
    name: 'an incompatible feature with a name',
    template: PLAIN,
    poke: (p) => {
      extend(p, 0x6803f857, [0, 63, ...new TextEncoder().encode('time travel')], 48);
      p.u64(72, 1n << 63n);
    },
    refused: /it needs features that are not supported \(incompatible_features\): time travel/,
  },
  {
    name: 'an incompatible feature without one',
    template: PLAIN,
    poke: (p) => p.u64(72, 1n << 63n),
    refused:
      /it needs features that are not supported \(incompatible_features\): Unknown incompatible feature: 0x[0-9a-f]+/,
  },
  {
    name: 'a backing file name of 1024 bytes',
    template: { options: { 'cluster-size': 4 * KiB } },
    poke: (p) => p.u64(8, 512).u32(16, 1024),
    refused: /backing_file_size is 1024; 1023 is the most that it can be/,
  },
  {
    name: 'a backing file name of 2^32-1 bytes',
    template: PLAIN,
    poke: (p) => p.u64(8, 512).u32(16, 0xffffffff),
    refused: /backing_file_size is 4294967295; 512 is the most that it can be/,
  },
  {
    name: 'no bitmaps in the bitmaps extension',
    template: PLAIN,
    poke: (p) => {
      extend(p, BITMAPS, u32s(0, 0, 0, 24, 0, 1024));
      p.u64(88, 1);
    },
    refused: /header extension 'bitmaps' has nb_bitmaps 0; it must be 1 to 65535/,
  },
  {
    name: '65536 bitmaps',
    template: PLAIN,
    poke: (p) => {
      extend(p, BITMAPS, u32s(65536, 0, 0, 65536 * 32, 0, 1024));
      p.u64(88, 1);
    },
    refused: /header extension 'bitmaps' has nb_bitmaps 65536; it must be 1 to 65535/,
  },
  {
    name: 'a bitmap directory of 2^53 bytes',
    template: PLAIN,
    poke: (p) => {
      extend(p, BITMAPS, u32s(1, 0, 1 << 21, 0, 0, 1024));
      p.u64(88, 1);
    },
    refused: /header extension 'bitmaps' has an invalid bitmap_directory_size/,
  },
  {
    name: 'a bitmap directory at an odd place',
    template: PLAIN,
    poke: (p) => {
      extend(p, BITMAPS, u32s(1, 0, 0, 32, 0, 1025));
      p.u64(88, 1);
    },
    refused: /header extension 'bitmaps' has an invalid bitmap_directory_offset \(1025\)/,
  },
  {
    name: 'a bitmaps extension of the wrong length',
    template: PLAIN,
    poke: (p) => {
      extend(p, BITMAPS, u32s(1, 0, 0, 32));
      p.u64(88, 1);
    },
    refused: /header extension 'bitmaps' has 16 bytes and must have 24/,
  },
  {
    name: 'an encryption header beyond 2^53',
    template: PLAIN,
    poke: (p) => {
      extend(p, ENCRYPTION, u32s(1 << 24, 0, 0, 4096));
      p.u32(32, 2);
    },
    refused: /header extension 'encryption header' has an invalid offset/,
  },
  {
    name: 'an encryption header of 2^40 bytes',
    template: PLAIN,
    poke: (p) => {
      extend(p, ENCRYPTION, u32s(0, 4096, 256, 0));
      p.u32(32, 2);
    },
    refused: /header extension 'encryption header' has an invalid length \(1099511627776\)/,
  },
  {
    name: 'an encryption header without encryption',
    template: PLAIN,
    poke: (p) => extend(p, ENCRYPTION, u32s(0, 4096, 0, 4096)),
    refused: /header extension 'encryption header' does not go with crypt_method 0/,
  },
  {
    name: 'the corrupt bit',
    template: PLAIN,
    poke: (p) => p.u64(72, 2),
    refusedForWriting: /it is marked corrupt: open it read-only, or repair it with a check/,
  },
  {
    name: 'a file of nothing but the magic',
    template: PLAIN,
    poke: (p) => {
      p.bytes = p.bytes.slice(0, 4);
    },
    refused: /qcow2 version 0 is not supported/,
  },
  {
    name: 'a file cut off in the header',
    template: PLAIN,
    poke: (p) => {
      p.bytes = p.bytes.slice(0, 100);
    },
    refused: /the header is cut off after 100 bytes/,
  },
  {
    name: 'a file cut off after the header',
    template: PLAIN,
    poke: (p) => {
      p.bytes = p.bytes.slice(0, KiB);
    },
    write: /there is no refcount block for the metadata at 0/,
  },
];

/** In messages; several fields are said in words. */
const NAMES_A_FIELD = new RegExp(
  [
    ...FIELDS.map(([name]) => name),
    'qcow2 format',
    'qcow2 version',
    'snapshot table',
    'header extension',
    'encrypted',
  ].join('|'),
);

/** Where QEMU opens an image and we do not, and why. */
const STRICTER: Readonly<Record<string, string>> = {
  backing_file_offset: 'a name inside the fixed header is not a name',
  l1_table_offset: 'QEMU takes the header itself, and what is beyond 2^53, for a table',
  refcount_table_offset: 'as l1_table_offset',
  nb_snapshots: 'entries beyond the end of the file are none; QEMU shows them as nameless',
  snapshots_offset: 'as nb_snapshots, and as l1_table_offset',
  header_length: 'the specification wants a multiple of 8',
};

function poked(bytes: Uint8Array, at: number, length: number, value: bigint): Uint8Array {
  const poke = new Poke(bytes);
  if (length === 1) poke.u8(at, Number(value));
  else if (length === 4) poke.u32(at, Number(value));
  else poke.u64(at, value);
  return poke.bytes;
}

test('every field of the header at its edges is taken as QEMU takes it, or refused by name', {
  ...needs('qemu-io'),
  timeout: 120_000,
}, async (t) => {
  registerQcow2();
  const context = new AioContext(new PoolBackend());
  const shop = new Workshop(context, scratch(t));
  const bytes = await shop.template(IMAGE);
  const stricter = new Set<string>();
  for (const [name, at, length] of FIELDS) {
    for (const edge of EDGES.filter((one) => one < 1n << BigInt(length * 8))) {
      const text = `${name} = 0x${edge.toString(16)}`;
      const path = shop.store(poked(bytes, at, length, edge));
      const before = fileState(path);
      const { open, read } = await shop.use(path, true);
      const qemu = await qemuUses(path, true);
      assert.equal(fileState(path), before, `${text}: nothing is written`);
      assert.ok(open !== undefined || read === undefined, `${text}: what opens can be read: ${read}`);
      if (open) {
        assert.match(open.message, NAMES_A_FIELD, text);
        assert.match(open.code, /^(EINVAL|ENOTSUP|EFBIG|EACCES)$/, text);
      }
      if (qemu.open === (open === undefined)) continue;
      assert.ok(qemu.open && STRICTER[name], `${text}: we say ${open?.message ?? 'yes'}, QEMU ${qemu.messages}`);
      stricter.add(name);
    }
  }
  assert.deepEqual([...stricter], Object.keys(STRICTER), 'every difference that is explained is there');
  await context.stop();
});

test('header extensions are refused by name', { ...needs('qemu-io'), timeout: 120_000 }, (t) =>
  tryRows(scratch(t), EXTENSIONS),
);
