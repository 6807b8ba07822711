/**
 * Images that we and QEMU make, and change in turns, over every two options that go together: QEMU's check finds
 * nothing, and both sides read what was written. The long tier has every image made by both.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, type TestContext, test } from 'node:test';
import { needs, peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { chooseBackend } from '../../aio/select.ts';
import { GiB, KiB, MiB, SECTOR } from '../../base/units.ts';
import { registerQcow2 } from './testing.ts';
import { type Change, type ImagePlan, placesOf, type Side, TestImage } from './testing-image.ts';
import { coveringRows } from './testing-pairs.ts';
import { describeRow, isPossible, planOfRow, SETTING_COUNTS } from './testing-plans.ts';

const LONG = process.env['BLOCKPLANE_TEST_TIER'] === 'long';

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
  const bits = create['refcount-bits'] ?? 16;
  const snapshots = bits >= 8 && create['data-file'] === undefined;
  await image.verifyOurs();
  await image.change(first, ...changesAt(image, 1));
  if (snapshots) await image.snapshot('create', 'one', first);
  await verify(image);
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
  await verify(image);
  if (image.version === 2 && snapshots) return;
  await resizes(image, first, second);
}

async function resizes(image: TestImage, first: Side, second: Side): Promise<void> {
  const { size } = image.plan.create;
  await image.resize(size + image.clusterSize + 3 * SECTOR, second);
  await image.change(first, ...changesAt(image, 5), { kind: 'write', at: size, length: 1000, seed: 6 });
  await verify(image);
  if (size > 2 * image.clusterSize) {
    await image.resize(size - image.clusterSize - SECTOR, first);
    await verify(image);
    await image.resize(size, second);
    await image.change(second, ...changesAt(image, 7));
  }
  await verify(image);
}

for (const [i, row] of coveringRows(SETTING_COUNTS, isPossible).entries()) {
  const sides: readonly Side[] = ['us', 'QEMU'];
  for (const first of LONG ? sides : [sides[i % 2]!]) {
    const second = first === 'us' ? 'QEMU' : 'us';
    test(`made by ${first}: ${describeRow(row)}`, needs('qemu-img', 'qemu-io'), (t) =>
      withImage(t, planOfRow(row), first, (image) => roundTrip(image, first, second)),
    );
  }
}
