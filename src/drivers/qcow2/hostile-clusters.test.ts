/** Damaged compressed clusters and snapshot tables, one kind of damage each: see testing-hostile.ts. */
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { needs, scratch } from '../../../test/harness.ts';
import { KiB, MiB } from '../../base/units.ts';
import { DISK, type Poke, type Row, type Template, tryRows } from './testing-hostile.ts';

const PACKED: Template = { compressed: true };
const ZSTD: Template = { compressed: true, options: { 'compression-type': 'zstd' } };
const SNAPSHOTS: Template = { snapshots: 2 };

const LONGER = 'QEMU takes as much as it needs of a longer stream';
const UNUSABLE = 'QEMU protects all that the table claims; one that is too large to be used is no table here';
const PAST_END = 'QEMU reads zeroes beyond the end of the file';
const LARGE = 'numbers of 2^53 and more are refused here; QEMU looks at them when the snapshot is used';

/** Where the fields of the first snapshot of two are. */
const snapshot =
  (field: number) =>
  (poke: Poke): number =>
    poke.snapshots + field;
/** A compressed entry for `sectors` after the first one, of clusters of 1 KiB. */
const PACKED_BIT = 1n << 62n;
const packed = (at: bigint, sectors: bigint): bigint => PACKED_BIT | (sectors << 60n) | at;

/** Where the first compressed cluster is. */
function firstPacked(poke: Poke): number {
  return Number(poke.view.getBigUint64(poke.l2) & ((1n << 60n) - 1n));
}

/** New bytes for it, in a cluster of its own at the end of the file. */
function replacePacked(poke: Poke, bytes: Uint8Array): void {
  const at = Math.ceil(poke.bytes.length / KiB) * KiB;
  poke
    .grow(at + KiB)
    .set(at, bytes)
    .refcount(at, 1);
  poke.u64(poke.l2, packed(BigInt(at), BigInt(Math.ceil(bytes.length / 512) - 1)));
}

function noise(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (Math.imul(i + 1, 0x9e3779b1) >>> 24) ^ (i * 7));
}

function manySnapshots(poke: Poke): void {
  const table = Math.ceil(poke.bytes.length / KiB) * KiB;
  const entry = 64;
  poke
    .grow(table + 65536 * entry)
    .u64(64, table)
    .u32(60, 65536);
  for (let i = 0; i < 65536; i++) {
    const at = table + i * entry;
    poke
      .u64(at, 2 ** 40 + i * 32 * MiB)
      .u32(at + 8, 4 * MiB)
      .u16(at + 12, 5)
      .u32(at + 36, 16)
      .u64(at + 48, DISK);
    poke.set(at + 56, new TextEncoder().encode(String(10000 + i)));
  }
}

const COMPRESSED: readonly Row[] = [
  {
    name: 'a compressed cluster at offset 0',
    template: PACKED,
    poke: (p) => p.u64(p.l2, packed(0n, 0n)),
    read: /Could not read a compressed cluster: its bytes at 0 are damaged/,
    marked: true,
  },
  {
    name: 'a compressed cluster beyond the file',
    template: PACKED,
    poke: (p) => p.u64(p.l2, packed(1n << 30n, 0n)),
    read: /Could not read a compressed cluster: 1073741824 is beyond the end of the file/,
    marked: true,
  },
  {
    name: 'a compressed cluster beyond 2^53',
    template: PACKED,
    poke: (p) => p.u64(p.l2, packed(1n << 55n, 0n)),
    read: /Could not read a compressed cluster: 36028797018963970 is beyond the end of the file/,
    marked: true,
  },
  {
    name: 'a compressed cluster of garbage',
    template: PACKED,
    poke: (p) => p.set(firstPacked(p), new Uint8Array(8).fill(0xff)),
    read: /Could not read a compressed cluster: its bytes at 137216 are damaged/,
  },
  {
    name: 'a compressed cluster cut off',
    template: PACKED,
    poke: (p) => replacePacked(p, deflateRawSync(noise(1024)).subarray(0, 300)),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
  {
    name: 'a compressed cluster of too few bytes',
    template: PACKED,
    poke: (p) => replacePacked(p, deflateRawSync(new Uint8Array(1023))),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
  {
    name: 'a compressed cluster of too many bytes',
    template: PACKED,
    poke: (p) => replacePacked(p, deflateRawSync(new Uint8Array(16 * MiB)).subarray(0, 500)),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
    qemu: { read: LONGER },
  },
  {
    name: 'a compressed cluster in the refcount block',
    template: PACKED,
    poke: (p) => p.u64(p.l2, packed(BigInt(p.refcounts), 0n)),
    read: /Could not read a compressed cluster: its bytes at 2048 are damaged/,
    marked: true,
  },
  {
    name: 'a zstd cluster of garbage',
    template: ZSTD,
    poke: (p) => p.set(firstPacked(p), new Uint8Array(8).fill(0xff)),
    read: /Could not read a compressed cluster: its bytes at 137216 are damaged/,
  },
  {
    name: 'a zstd frame that claims 2^60 bytes',
    template: ZSTD,
    poke: (p) =>
      replacePacked(p, Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x03, 0, 0, 0])),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
  {
    name: 'a zstd frame of too many bytes',
    template: ZSTD,
    poke: (p) => replacePacked(p, Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x03, 0x00, 0x08, 0x55])),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
  {
    name: 'a zstd frame of too few bytes',
    template: ZSTD,
    poke: (p) => replacePacked(p, Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x43, 0x00, 0x00, 0x55])),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
  {
    name: 'a zstd frame without its last block',
    template: ZSTD,
    poke: (p) => replacePacked(p, Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x02, 0x20, 0x00, 0x55])),
    read: /Could not read a compressed cluster: its bytes at 138240 are damaged/,
  },
];

const SNAPSHOT_TABLES: readonly Row[] = [
  {
    name: 'a snapshot with an L1 table of 2^32-1 entries',
    template: SNAPSHOTS,
    poke: (p) => p.u32(snapshot(8)(p), 0xffffffff),
    qemu: { write: UNUSABLE },
  },
  {
    name: 'a snapshot with an L1 table larger than the active one',
    template: SNAPSHOTS,
    poke: (p) => p.u32(snapshot(8)(p), 0x10000),
    write: /the snapshot table is at 140288, where other metadata is/,
  },
  {
    name: 'a snapshot with an L1 table at an odd place',
    template: SNAPSHOTS,
    poke: (p) => p.u64(snapshot(0)(p), p.number(p.snapshots) + 1),
  },
  {
    name: 'a snapshot with an L1 table beyond 2^53',
    template: SNAPSHOTS,
    poke: (p) => p.u64(snapshot(0)(p), 1n << 60n),
    refused: /entry 0 of the snapshot table has l1_table_offset of 2\^53 or more/,
    qemu: { open: LARGE },
  },
  {
    name: 'a snapshot with the active L1 table',
    template: SNAPSHOTS,
    poke: (p) => p.u64(snapshot(0)(p), p.l1),
    write: /the L1 table of snapshot 1 is at 3072, where other metadata is/,
  },
  {
    name: 'a snapshot with 1025 bytes of extra data',
    template: SNAPSHOTS,
    poke: (p) => p.u32(snapshot(36)(p), 1025),
    refused: /entry 0 of the snapshot table has extra_data_size 1025; 1024 is the limit/,
  },
  {
    name: 'a snapshot with 2^32-1 bytes of extra data',
    template: SNAPSHOTS,
    poke: (p) => p.u32(snapshot(36)(p), 0xffffffff),
    refused: /entry 0 of the snapshot table has extra_data_size 4294967295; 1024 is the limit/,
  },
  {
    name: 'a snapshot with an id of 65535 bytes',
    template: SNAPSHOTS,
    poke: (p) => p.u16(snapshot(12)(p), 0xffff),
    refused: /entry 0 of the snapshot table is beyond the end of the file/,
    qemu: { open: PAST_END },
  },
  {
    name: 'a snapshot with a name of 65535 bytes',
    template: SNAPSHOTS,
    poke: (p) => p.u16(snapshot(14)(p), 0xffff),
    refused: /entry 0 of the snapshot table is beyond the end of the file/,
    qemu: { open: PAST_END },
  },
  {
    name: 'a snapshot of a disk of 2^63 bytes',
    template: SNAPSHOTS,
    poke: (p) => p.u64(snapshot(48)(p), 1n << 63n),
    refused: /entry 0 of the snapshot table has disk_size of 2\^53 or more/,
    qemu: { open: LARGE },
  },
  {
    name: '65536 snapshots with the largest L1 tables',
    template: SNAPSHOTS,
    poke: manySnapshots,
    slowForQemu: true,
    write: /the refcount of the metadata at 141312 is 0/,
  },
];

const OPTIONS = { ...needs('qemu-io'), timeout: 120_000 };

test('damaged compressed clusters are errors of their own cluster', OPTIONS, (t) => tryRows(scratch(t), COMPRESSED));

test('damaged snapshot tables cost nothing', OPTIONS, (t) => tryRows(scratch(t), SNAPSHOT_TABLES));
