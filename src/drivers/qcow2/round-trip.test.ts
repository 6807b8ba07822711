/**
 * Images that we and QEMU make, and change in turns, over every two options that go together: QEMU's check finds
 * nothing, and both sides read what was written. The long tier has every image made by both.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { needs, peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { chooseBackend } from '../../aio/select.ts';
import { KiB, MiB, SECTOR } from '../../base/units.ts';
import { encodeHeader, type HeaderExtension, parseHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { registerQcow2 } from './testing.ts';
import { type Change, type ImagePlan, placesOf, qemuOptions, type Side, TestImage } from './testing-image.ts';
import { coveringRows } from './testing-pairs.ts';
import { describeRow, isPossible, planOfRow, SETTING_COUNTS } from './testing-plans.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';

const SIDES: readonly Side[] = ['us', 'QEMU'];

before(registerQcow2);

async function withImage(
  t: TestContext,
  plan: ImagePlan,
  maker: Side,
  body: (image: TestImage) => Promise<void>,
): Promise<void> {
  const context = new AioContext(await chooseBackend());
  try {
    const image = await TestImage.make(context, scratch(t), plan, maker);
    await body(image);
    await image.close();
  } finally {
    await context.stop();
  }
}

/** Of each kind one at each place where something ends; `seed` tells one round from the next. */
function changesAt(image: TestImage, seed: number): Change[] {
  const { clusterSize } = image;
  const size = image.model.length;
  const external = image.plan.create['data-file'] !== undefined;
  const changes: Change[] = [];
  const add = (kind: Change['kind'], at: number, length: number): void => {
    const from = Math.max(0, at);
    const inside = Math.min(length, size - from);
    if (inside > 0) changes.push({ kind, at: from, length: inside, seed: seed * 100 + changes.length });
  };
  const places = placesOf(image.plan);
  for (const place of places) add(external ? 'write' : 'compressed', place + clusterSize, clusterSize);
  for (const place of places) {
    // Over the edge, in the middle, and as a whole.
    add('write', place - 700, 1400);
    add('zero', place + clusterSize + 100, 600);
    add(seed % 2 === 0 ? 'unmap' : 'zero', place - clusterSize, 2 * clusterSize);
    add('write', place + 2 * clusterSize, Math.min(clusterSize, 128 * KiB));
    add('discard', place + 2 * clusterSize, clusterSize);
  }
  return changes;
}

async function verify(image: TestImage): Promise<void> {
  await image.verifyOurs();
  await image.verifyTheirs();
}

async function roundTrip(image: TestImage, first: Side, second: Side): Promise<void> {
  const { create } = image.plan;
  const snapshots = create['refcount-bits']! >= 8 && create['data-file'] === undefined;
  await image.verifyOurs();
  await image.change(first, ...changesAt(image, 1));
  await verify(image);
  if (snapshots) await image.snapshot('create', 'one', first);
  await image.change(second, ...changesAt(image, 2));
  if (snapshots) {
    await image.snapshot('create', 'two', second);
    await image.change(first, ...changesAt(image, 3));
    await verify(image);
    await image.snapshot('apply', 'one', second);
    await image.change(second, ...changesAt(image, 4));
    await image.snapshot('delete', 'one', first);
    await image.verifySnapshots();
  }
  if (image.version === 3 || !snapshots) await resizes(image, first, second);
  await verify(image);
}

async function resizes(image: TestImage, first: Side, second: Side): Promise<void> {
  const { size } = image.plan.create;
  await image.resize(size + image.clusterSize + 3 * SECTOR, second);
  await image.change(first, ...changesAt(image, 5), { kind: 'write', at: size, length: 1000, seed: 6 });
  await image.verifyOurs();
  if (size <= 2 * image.clusterSize) return;
  await image.resize(size - image.clusterSize - SECTOR, first);
  await image.check();
  await image.resize(size, second);
  await image.change(second, ...changesAt(image, 7));
}

for (const [i, row] of coveringRows(SETTING_COUNTS, isPossible).entries()) {
  for (const first of LONG ? SIDES : [SIDES[i % 2]!]) {
    const second = first === 'us' ? 'QEMU' : 'us';
    test(`made by ${first}: ${describeRow(row)}`, needs('qemu-img', 'qemu-io'), (t) =>
      withImage(t, planOfRow(row), first, (image) => roundTrip(image, first, second)),
    );
  }
}

const ODD = 3 * MiB + 37 * SECTOR;

for (const compression of ['zlib', 'zstd'] as const) {
  for (const clusterSize of [512, 4 * KiB, 64 * KiB, 2 * MiB]) {
    for (const extended of clusterSize === 64 * KiB ? [false, true] : [false]) {
      const create = {
        size: ODD,
        'cluster-size': clusterSize,
        'compression-type': compression,
        'extended-l2': extended,
      };
      test(`compressed by qemu-img: ${JSON.stringify(create)}`, needs('qemu-img', 'qemu-io'), (t) =>
        withImage(t, { create }, 'QEMU', async (image) => {
          for (let at = 0, seed = 0; at < ODD; at += 300_000, seed++) {
            image.apply({ kind: 'write', at, length: Math.min(200_000, ODD - at), seed });
          }
          const raw = join(image.folder, 'filled.raw');
          image.model.store(raw);
          const options = qemuOptions(create);
          await peer('qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', ...options, raw, image.path);
          await image.verifyOurs();
          await image.ours(...changesAt(image, 1));
          await verify(image);
        }),
      );
    }
  }
}

for (const by of SIDES) {
  test(
    `a backing file is changed by ${by} for another, for a raw one, for none`,
    needs('qemu-img', 'qemu-io'),
    async (t) => {
      const size = 5 * MiB + SECTOR;
      const plan: ImagePlan = { create: { size }, layers: [{ format: 'qcow2', size }] };
      await withImage(t, plan, by, async (image) => {
        await image.ours({ kind: 'write', at: 64 * KiB, length: 128 * KiB, seed: 1 });
        await verify(image);
        await image.rebase([{ format: 'raw', size: MiB }], by);
        await verify(image);
        await image.rebase(
          [
            { format: 'raw', size: MiB },
            { format: 'qcow2', size: 2 * size },
          ],
          by,
        );
        await verify(image);
        await image.rebase([], by);
        await image.change(by, { kind: 'write', at: 0, length: 64 * KiB, seed: 2 });
        await verify(image);
      });
    },
  );

  test(`version, refcounts and lazy refcounts are changed by ${by}`, needs('qemu-img', 'qemu-io'), async (t) => {
    const size = 5 * MiB + SECTOR;
    const plan: ImagePlan = { create: { size, 'cluster-size': 4 * KiB }, layers: [{ format: 'qcow2', size: 2 * MiB }] };
    await withImage(t, plan, by, async (image) => {
      await image.ours(...changesAt(image, 1));
      for (const [i, bits] of [1, 2, 4, 8, 32, 64, 16].entries()) {
        await image.amend({ 'refcount-bits': bits }, by);
        await image.change(by, ...changesAt(image, 2 + i));
        await verify(image);
      }
      await image.amend({ 'lazy-refcounts': true }, by);
      await image.ours(...changesAt(image, 10));
      await verify(image);
      await image.amend({ 'lazy-refcounts': false }, by);
      await image.amend({ compat: '0.10' }, by);
      await image.change(by, ...changesAt(image, 11));
      await verify(image);
      await image.amend({ compat: '1.1' }, by);
      await image.change(by, ...changesAt(image, 12));
      await verify(image);
    });
  });
}

test('what an image has that we do not know: bits and extensions', needs('qemu-img', 'qemu-io'), async (t) => {
  await withImage(t, { create: { size: MiB, 'cluster-size': 4 * KiB } }, 'us', async (image) => {
    const header = parseHeader(readFileSync(image.path).subarray(0, 4 * KiB), 4 * KiB);
    header.compatible |= 1n << 40n;
    header.autoclear |= 1n << 41n;
    header.extensions.push({ type: 0x1234_5678, data: new TextEncoder().encode('somebody else') });
    const bytes = encodeHeader(header);
    const head = openSync(image.path, 'r+');
    writeSync(head, bytes, 0, bytes.length, 0);
    closeSync(head);
    const now = (): Qcow2Header => parseHeader(readFileSync(image.path).subarray(0, 4 * KiB), 4 * KiB);
    const ours = (): HeaderExtension | undefined => now().extensions.find(({ type }) => type === 0x1234_5678);
    await image.open({ 'read-only': true });
    await image.close();
    assert.deepEqual(now(), header, 'who only reads changes nothing');
    await image.ours(...changesAt(image, 1));
    await image.resize(2 * MiB, 'us');
    await verify(image);
    assert.equal(now().autoclear, 0n, 'a bit of what we do not maintain');
    assert.equal(now().compatible, 1n << 40n);
    assert.equal(new TextDecoder().decode(ours()!.data), 'somebody else');
    await image.snapshot('create', 'one', 'QEMU');
    await image.amend({ compat: '0.10' }, 'us').catch((error: unknown) => assert.match(`${error}`, /snapshots/));
    await image.snapshot('delete', 'one', 'us');
    assert.equal(new TextDecoder().decode(ours()!.data), 'somebody else');
    await verify(image);
  });
});
