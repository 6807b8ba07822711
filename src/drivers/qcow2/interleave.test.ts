/**
 * Every order in which things can happen to two writers, one discard and one reader on three clusters. The simulated
 * world asks what happens next, and all answers are tried, depth first: the same answers give the same run.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, peer, scratch } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { NodeOptions } from '../../block/graph.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const CLUSTER = 512;
const CLUSTERS = 3;
const LENGTH = CLUSTER * CLUSTERS;
/** Two writers, each over parts of two clusters; they meet in the middle one. */
const WIDE = [
  { at: 256, length: 512, value: 0x11 },
  { at: 640, length: 640, value: 0x22 },
] as const;
/** Where each cluster has to be copied, which takes a read and a write, these are orders enough. */
const NARROW = [
  { at: 384, length: 256, value: 0x11 },
  { at: 576, length: 320, value: 0x22 },
] as const;
const OLD = 0x77;
/** More than this is a mistake in the test. */
const ORDERS_MAX = LONG ? 2_000_000 : 50_000;
const SAMPLE = 2000;

interface Scene {
  readonly name: string;
  readonly writes: typeof WIDE | typeof NARROW;
  readonly options?: Partial<Qcow2CreateOptions>;
  /** 357,216 orders, since tables and data are copied. They take a quarter of an hour: all in the long tier, some in
   *  the short one. */
  readonly many?: boolean;
  /** What is there when it begins. */
  readonly before: (blk: BlockBackend) => Promise<void>;
}

function nodeOf(): NodeOptions {
  const file = { driver: 'file', filename: '/image' };
  return { driver: 'qcow2', discard: 'unmap', 'cache-clean-interval': 0, file };
}

async function fill(blk: BlockBackend, at: number, length: number, value: number): Promise<void> {
  const bytes = new Uint8Array(new SharedArrayBuffer(length)).fill(value);
  await blk.write(at, Iov.of(blk.context.backend.memory(bytes)));
}

const SCENES: readonly Scene[] = [
  { name: 'nothing allocated', writes: WIDE, before: async () => undefined },
  { name: 'all allocated', writes: WIDE, before: (blk) => fill(blk, 0, LENGTH, OLD) },
  { name: 'the middle one allocated', writes: NARROW, before: (blk) => fill(blk, CLUSTER, CLUSTER, OLD) },
  {
    name: 'all shared with a snapshot',
    writes: NARROW,
    many: true,
    before: async (blk) => {
      await fill(blk, 0, LENGTH, OLD);
      await blk.flush();
      await (blk.root!.impl as Qcow2Node).snapshots.create('before');
    },
  },
  {
    name: 'zero clusters with a place in the file',
    writes: NARROW,
    before: async (blk) => {
      await fill(blk, 0, LENGTH, OLD);
      await blk.writeZeroes(0, LENGTH, 0);
    },
  },
];

/** The disk of a scene, before anything happens at once. */
async function prepare(scene: Scene): Promise<Uint8Array> {
  const sim = new Sim(1);
  sim.writeDisk('/image', new Uint8Array(0));
  const context = new AioContext(sim.backend());
  const size = { size: 64 * 1024, 'cluster-size': CLUSTER };
  await sim.complete(makeImage(context, { driver: 'file', filename: '/image' }, { ...size, ...scene.options }));
  const blk = await sim.complete(BlockBackend.open(context, nodeOf()));
  await sim.complete(scene.before(blk));
  await sim.complete(blk.close());
  await context.stop();
  return sim.readDisk('/image')!;
}

interface Outcome {
  readonly disk: Uint8Array;
  readonly final: Uint8Array;
  readonly seen: Uint8Array;
  /** How many answers there were at each choice. */
  readonly widths: number[];
}

async function run(scene: Scene, image: Uint8Array, answers: readonly number[]): Promise<Outcome> {
  const sim = new Sim(7);
  sim.writeDisk('/image', image);
  const context = new AioContext(sim.backend());
  const blk = await sim.complete(BlockBackend.open(context, nodeOf()));
  const memory = (length: number, value: number): Iov =>
    Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value)));
  const seen = memory(LENGTH, 0xee);
  const works = [
    ...scene.writes.map(
      ({ at, length, value }) =>
        () =>
          blk.write(at, memory(length, value)),
    ),
    () => blk.discard(0, LENGTH),
    () => blk.read(0, seen),
  ];
  const widths: number[] = [];
  sim.choose = (count) => {
    widths.push(count);
    return (answers[widths.length - 1] ?? 0) % count;
  };
  const running: Promise<void>[] = [];
  for (const work of works) sim.after(0, () => running.push(work()));
  await sim.run(() => running.length === works.length);
  await sim.complete(Promise.all(running));
  sim.choose = undefined;
  const final = memory(LENGTH, 0xee);
  await sim.complete(blk.read(0, final));
  await sim.complete(blk.close());
  await context.stop();
  return { disk: sim.readDisk('/image')!, final: final.run(0), seen: seen.run(0), widths };
}

function covers(write: { readonly at: number; readonly length: number }, at: number): boolean {
  return at >= write.at && at < write.at + write.length;
}

/** Every byte is what somebody has put there. Whatever order it was, the discard has taken the old bytes away. */
function verify(scene: Scene, outcome: Outcome, image: string): void {
  for (let at = 0; at < LENGTH; at++) {
    const written: number[] = scene.writes.filter((write) => covers(write, at)).map(({ value }) => value);
    const end = outcome.final[at]!;
    assert.ok(end === 0 || written.includes(end), `${image}: byte ${at} is ${end} in the end`);
    const read = outcome.seen[at]!;
    assert.ok(read === 0 || read === OLD || written.includes(read), `${image}: byte ${at} was read as ${read}`);
  }
}

for (const scene of SCENES) {
  const { skip } = needs('qemu-img');
  const timeout = LONG ? 3_600_000 : 60_000;
  test(`all interleavings of two writers, a discard and a reader: ${scene.name}`, { skip, timeout }, async (t) => {
    registerQcow2();
    const image = await prepare(scene);
    const disks = new Map<string, Uint8Array>();
    const sample = scene.many && !LONG ? new Prng(20) : undefined;
    let orders = 0;
    for (let answers: number[] | undefined = []; answers !== undefined; orders++) {
      assert.ok(orders < ORDERS_MAX, 'too many orders');
      const outcome = await run(scene, image, answers);
      verify(scene, outcome, `answers ${answers.join(',')}`);
      disks.set(createHash('sha256').update(outcome.disk).digest('hex'), outcome.disk);
      answers = sample ? randomAnswers(sample, orders) : nextAnswers(answers, outcome.widths);
    }
    t.diagnostic(`${orders} orders${sample ? ' at random' : ', which is all'}, ${disks.size} different images`);
    assert.ok(orders >= 24, 'four things begin in any order');
    const path = join(scratch(t), 'image');
    for (const disk of disks.values()) {
      writeFileSync(path, disk);
      await peer('qemu-img', 'check', '-q', path);
    }
  });
}

/** Any answers; undefined when enough were tried. */
function randomAnswers(prng: Prng, orders: number): number[] | undefined {
  if (orders + 1 >= SAMPLE) return undefined;
  // The first answers decide most. One that is too large is cut down to what there is.
  return Array.from({ length: 24 }, () => prng.below(6));
}

/** The last choice that has an answer left takes the next one; undefined when all were tried. */
function nextAnswers(answers: readonly number[], widths: readonly number[]): number[] | undefined {
  for (let at = widths.length - 1; at >= 0; at--) {
    const answer = answers[at] ?? 0;
    if (answer + 1 < widths[at]!) return [...widths.slice(0, at).map((_, i) => answers[i] ?? 0), answer + 1];
  }
  return undefined;
}
