/**
 * Broken images read by us and by QEMU: the same bytes, or an error of both. Where only one of the two can read one,
 * it is for a reason that is listed here. BLOCKPLANE_TEST_TIER=long has more of them.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, run, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { MiB, SECTOR } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerCounted } from './testing-counted.ts';
import { type BaseImage, baseImages, mutate } from './testing-mutants.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const RUNS = LONG ? 4000 : 150;
const FIRST = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);
/** A claim of more is not compared: QEMU would write it out. */
const SIZE_MAX = 16 * MiB;

/** We refuse, or cannot read, what QEMU can: by what our error says. */
const STRICTER: readonly (readonly [RegExp, string])[] = [
  [/L[12] entry .* is invalid/, 'reserved bits, and offsets of 2^53 and more'],
  [/snapshot table/, 'QEMU reads zeroes beyond the end of the file, and any number'],
  [/(l1_table_offset|refcount_table_offset|snapshots_offset) is (0|2\^53 or more)/, 'QEMU takes it for a table'],
  [/backing_file_offset|header_length/, 'inside the fixed header; no multiple of 8'],
  [/has a NUL in it/, 'QEMU takes the name up to there'],
  [/compressed cluster/, 'a stream of more than a cluster, of which QEMU takes the beginning'],
  [/header extension/, 'QEMU looks at some extensions only where it needs them, and at none twice'],
];

/** We read what QEMU refuses: by what its error says. */
const LAXER: readonly (readonly [RegExp, string])[] = [
  [/Snapshot table offset invalid/, 'there are no snapshots, so that there is no table'],
  [/[Bb]itmap/, 'a bitmap that cannot be loaded does not keep anybody from the data'],
];

interface Result {
  readonly bytes?: Uint8Array;
  readonly message: string;
}

async function ours(context: AioContext, base: BaseImage, path: string, folder: string): Promise<Result> {
  const raw = (name: string) => ({ driver: 'file', filename: join(folder, name), 'read-only': true });
  try {
    const blk = await BlockBackend.open(context, {
      ...{ driver: 'qcow2-watched', 'read-only': true, file: { driver: 'file', filename: path } },
      ...(base.data ? { 'data-file': raw('data') } : {}),
      ...(base.backing ? { backing: raw('backing') } : {}),
    });
    try {
      if (blk.length > SIZE_MAX) return { message: 'too large' };
      const bytes = new Uint8Array(new SharedArrayBuffer(blk.length));
      if (bytes.length > 0) await blk.read(0, Iov.of(context.backend.memory(bytes)));
      return { bytes, message: 'yes' };
    } finally {
      await blk.close();
    }
  } catch (error) {
    if (error instanceof BlockError) return { message: error.message };
    throw error;
  }
}

async function qemu(base: BaseImage, path: string, folder: string): Promise<Result> {
  const target = join(folder, 'raw');
  rmSync(target, { force: true });
  const raw = (name: string) => ({ driver: 'file', filename: join(folder, name) });
  const options = {
    ...{ driver: 'qcow2', file: { driver: 'file', filename: path } },
    ...(base.data ? { 'data-file': raw('data') } : {}),
    backing: base.backing ? { driver: 'raw', file: raw('backing') } : null,
  };
  const { code, stderr } = await run('qemu-img', ['convert', '-O', 'raw', `json:${JSON.stringify(options)}`, target]);
  if (code !== 0 || !existsSync(target)) return { message: stderr };
  return { bytes: new Uint8Array(readFileSync(target)), message: 'yes' };
}

test('broken images read as QEMU reads them, or not at all', {
  ...needs('qemu-img'),
  timeout: 1_800_000,
}, async (t) => {
  registerCounted();
  const folder = scratch(t);
  const context = new AioContext(new PoolBackend());
  const images = await baseImages(context);
  const counts = { same: 0, neither: 0, stricter: 0, laxer: 0, large: 0 };
  for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
    const prng = new Prng(seed);
    const base = prng.pick(images);
    const { bytes, what } = mutate(base, prng);
    const path = join(folder, 'image');
    writeFileSync(path, bytes);
    if (base.data) writeFileSync(join(folder, 'data'), base.data);
    if (base.backing) writeFileSync(join(folder, 'backing'), base.backing);
    const mine = await ours(context, base, path, folder);
    if (mine.message === 'too large') {
      counts.large++;
      continue;
    }
    const theirs = await qemu(base, path, folder);
    const text = `seed ${seed}: ${what}: we say ${mine.message}, QEMU ${theirs.message}`;
    assert.equal(statSync(path).size, bytes.length, text);
    if (mine.bytes && theirs.bytes) {
      counts.same++;
      // QEMU counts whole sectors.
      assert.ok(Math.abs(theirs.bytes.length - mine.bytes.length) < SECTOR, text);
      const length = Math.min(theirs.bytes.length, mine.bytes.length);
      const at = mine.bytes.subarray(0, length).findIndex((byte, i) => byte !== theirs.bytes![i]);
      assert.ok(at < 0, `${text}: byte ${at} is another`);
    } else if (!mine.bytes && !theirs.bytes) counts.neither++;
    else {
      const reasons = mine.bytes ? LAXER : STRICTER;
      const message = mine.bytes ? theirs.message : mine.message;
      assert.ok(
        reasons.some(([pattern]) => pattern.test(message)),
        text,
      );
      counts[mine.bytes ? 'laxer' : 'stricter']++;
    }
  }
  t.diagnostic(`${RUNS} images from seed ${FIRST}: ${JSON.stringify(counts)}`);
  await context.stop();
});
