/** Damaged tables and refcounts, one kind of damage each: see testing-hostile.ts. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, scratch } from '../../../test/harness.ts';
import { KiB, MiB } from '../../base/units.ts';
import { type Poke, type Row, type Template, tryRows } from './testing-hostile.ts';

const PLAIN: Template = {};
const V2: Template = { options: { compat: '0.10' } };
const SNAPSHOTS: Template = { snapshots: 2 };
const SUBCLUSTERS: Template = { options: { 'extended-l2': true, 'cluster-size': 16 * KiB } };

const COPIED = 1n << 63n;
const copied = (at: number): bigint => COPIED | BigInt(at);

const RESERVED = 'QEMU ignores reserved bits; an entry with one is not what its writer meant';
const BEYOND = 'QEMU reads zeroes there; offsets of 2^53 and more are refused here';
/** Where a file may be that long QEMU writes there, too. */
const WHERE_BEYOND = { read: BEYOND, ...(canBeLong() ? { write: BEYOND } : {}) };
const SHARED = 'QEMU writes to the table until something it checks for is hit; here nothing is written';
const UNCOUNTED = 'QEMU looks at a refcount only when it allocates there; here metadata is looked up before';

/** Whether the file system of the temporary folder has files of nearly 2^53 bytes. */
function canBeLong(): boolean {
  const folder = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  const path = join(folder, 'long');
  writeFileSync(path, '');
  try {
    truncateSync(path, Number.MAX_SAFE_INTEGER);
    return true;
  } catch {
    return false;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const invalid = (message: RegExp): Pick<Row, 'read' | 'write'> => ({ read: message, write: message });
const BAD_L1 = invalid(/L1 entry 0 is invalid/);
const BAD_L2 = invalid(/the L2 entry 0x[0-9a-f]+ of the disk's cluster at 0 is invalid/);

/** The first cluster of the disk where metadata is. */
function dataIn(what: string, template: Template, place: (p: Poke) => number, at: number): Row {
  return {
    name: `data in ${what}`,
    template,
    poke: (p) => p.u64(p.l2, copied(place(p))),
    write: new RegExp(`data cluster 0 of the disk is at ${at}, where metadata is`),
  };
}

const TABLES: readonly Row[] = [
  {
    name: 'an L1 entry with a reserved bit',
    template: PLAIN,
    poke: (p) => p.u64(p.l1, copied(p.l2) | (1n << 56n)),
    ...BAD_L1,
    qemu: { read: RESERVED, write: RESERVED },
  },
  {
    name: 'an L1 entry at an odd place',
    template: PLAIN,
    poke: (p) => p.u64(p.l1, copied(p.l2 + 512)),
    ...BAD_L1,
  },
  { name: 'an L1 entry beyond the file', template: PLAIN, poke: (p) => p.u64(p.l1, copied(16 * MiB)) },
  {
    name: 'an L1 entry beyond 2^53',
    template: PLAIN,
    poke: (p) => p.u64(p.l1, COPIED | (1n << 55n)),
    ...BAD_L1,
    qemu: WHERE_BEYOND,
  },
  {
    name: 'an L1 entry that names the L1 table',
    template: PLAIN,
    poke: (p) => p.u64(p.l1, copied(p.l1)),
    write: /L2 table 0 is at 3072, where other metadata is/,
  },
  {
    name: 'an L1 entry that names the refcount block',
    template: PLAIN,
    poke: (p) => p.u64(p.l1, copied(p.refcounts)),
    write: /L2 table 0 is at 2048, where other metadata is/,
  },
  {
    name: 'two L1 entries that name one table',
    template: PLAIN,
    poke: (p) => p.u64(p.l1 + 8, copied(p.l2)),
    write: /L2 table 1 is at 4096, where other metadata is/,
    qemu: { write: SHARED },
  },
  {
    name: 'an L2 entry of 0xbfffffffffff0000',
    template: PLAIN,
    poke: (p) => p.u64(p.l2, 0xbfffffffffff0000n),
    ...BAD_L2,
    qemu: { ...WHERE_BEYOND, read: RESERVED },
  },
  {
    name: 'an L2 entry at an odd place',
    template: PLAIN,
    poke: (p) => p.u64(p.l2, copied(p.data + 512)),
    ...BAD_L2,
  },
  {
    name: 'an L2 entry with a reserved low bit',
    template: PLAIN,
    poke: (p) => p.u64(p.l2, copied(p.data) | 2n),
    ...BAD_L2,
    qemu: { read: RESERVED, write: RESERVED },
  },
  {
    name: 'an L2 entry with a reserved high bit',
    template: PLAIN,
    poke: (p) => p.u64(p.l2, copied(p.data) | (1n << 56n)),
    ...BAD_L2,
    qemu: { read: RESERVED, write: RESERVED },
  },
  { name: 'an L2 entry beyond the file', template: PLAIN, poke: (p) => p.u64(p.l2, copied(16 * MiB)) },
  {
    name: 'an L2 entry beyond 2^53',
    template: PLAIN,
    poke: (p) => p.u64(p.l2, COPIED | (1n << 55n)),
    ...BAD_L2,
    qemu: WHERE_BEYOND,
  },
  {
    name: 'a zero flag in version 2',
    template: V2,
    poke: (p) => p.u64(p.l2, 1),
    ...BAD_L2,
  },
  dataIn('the L1 table', PLAIN, (p) => p.l1, 3072),
  dataIn('its L2 table', PLAIN, (p) => p.l2, 4096),
  dataIn('the refcount block', PLAIN, (p) => p.refcounts, 2048),
  dataIn('the refcount table', PLAIN, (p) => p.refcountTable, 1024),
  dataIn('the snapshot table', SNAPSHOTS, (p) => p.snapshots, 140288),
  dataIn('the L1 table of a snapshot', SNAPSHOTS, (p) => p.number(p.snapshots), 137216),
  { name: 'data in the header, by an entry with COPIED', template: PLAIN, poke: (p) => p.u64(p.l2, COPIED) },
  {
    name: 'a subcluster allocated and zero',
    template: SUBCLUSTERS,
    poke: (p) => p.u32(p.l2 + 8, 1),
    ...BAD_L2,
  },
  {
    name: 'the zero flag in an extended entry',
    template: SUBCLUSTERS,
    poke: (p) => p.u64(p.l2, copied(p.data) | 1n),
    ...BAD_L2,
    qemu: { read: RESERVED, write: RESERVED },
  },
  {
    name: 'subclusters allocated nowhere',
    template: SUBCLUSTERS,
    poke: (p) => p.u64(p.l2, 0),
    ...BAD_L2,
  },
];

const REFCOUNTS: readonly Row[] = [
  {
    name: 'no refcount block',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, 0),
    write: /there is no refcount block for the metadata at 0/,
  },
  {
    name: 'a refcount block at offset 0, by a reserved bit',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, COPIED),
    write: /refcount table entry 0 is invalid: 0x[0-9a-f]+/,
  },
  {
    name: 'a refcount block at an odd place',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, p.refcounts + 512),
    write: /refcount table entry 0 is invalid: 0x[0-9a-f]+/,
  },
  {
    name: 'a refcount block beyond the file',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, 16 * MiB),
    write: /the refcount of the metadata at 0 is 0/,
  },
  {
    name: 'a refcount block beyond 2^53',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, 1n << 55n),
    write: /refcount table entry 0 is invalid: 0x[0-9a-f]+/,
  },
  {
    name: 'a refcount block in the L1 table',
    template: PLAIN,
    poke: (p) => p.u64(p.refcountTable, p.l1),
    write: /refcount block 0 is at 3072, where other metadata is/,
  },
  {
    name: 'a refcount table of nothing but the first block',
    template: PLAIN,
    poke: (p) => {
      for (let i = 0; i < 128; i++) p.u64(p.refcountTable + i * 8, p.refcounts);
    },
    write: /refcount block 1 is at 2048, where other metadata is/,
    qemu: { write: UNCOUNTED },
  },
  {
    name: 'no refcounts',
    template: PLAIN,
    poke: (p) => p.set(p.refcounts, new Uint8Array(KiB)),
    write: /the refcount of the metadata at 0 is 0/,
  },
  {
    name: 'no refcount of the header',
    template: PLAIN,
    poke: (p) => p.refcount(0, 0),
    write: /the refcount of the metadata at 0 is 0/,
    qemu: { write: UNCOUNTED },
  },
  {
    name: 'no refcount of the L1 table',
    template: PLAIN,
    poke: (p) => p.refcount(p.l1, 0),
    write: /the refcount of the metadata at 3072 is 0/,
    qemu: { write: UNCOUNTED },
  },
  {
    name: 'no refcount of an L2 table',
    template: PLAIN,
    poke: (p) => p.refcount(p.l2, 0),
    write: /the refcount of the metadata at 4096 is 0/,
    qemu: { write: UNCOUNTED },
  },
  {
    name: 'no refcount of the refcount block',
    template: PLAIN,
    poke: (p) => p.refcount(p.refcounts, 0),
    write: /the refcount of the metadata at 2048 is 0/,
    qemu: { write: UNCOUNTED },
  },
  { name: 'no refcount of data', template: PLAIN, poke: (p) => p.refcount(p.data, 0) },
  { name: 'refcounts of 65535', template: PLAIN, poke: (p) => p.set(p.refcounts, new Uint8Array(KiB).fill(255)) },
];

const OPTIONS = { ...needs('qemu-io'), timeout: 120_000 };

test('damaged tables are read where that can be, and never written over', OPTIONS, (t) => tryRows(scratch(t), TABLES));

test('wrong refcounts never lead to a write over metadata', OPTIONS, (t) => tryRows(scratch(t), REFCOUNTS));
