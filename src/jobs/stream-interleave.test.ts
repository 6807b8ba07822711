/**
 * Orders in which things can happen to a reader through copy-on-read, a writer and a stream on four clusters. The
 * simulated world asks what happens next; the same answers give the same run.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { needs, peer, scratch } from '../../test/harness.ts';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Iov } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import { BlockBackend } from '../block/backend.ts';
import { makeImage } from '../drivers/qcow2/testing.ts';
import { StreamJob } from './stream-job.ts';
import { registerStreamDrivers } from './testing-stream.ts';

const CLUSTER = 512;
const LENGTH = 4 * CLUSTER;
/** What is read at once with the rest: not from the first cluster on, so that the order can be seen in the image. */
const READ_AT = 2 * CLUSTER - 100;
const OLD = 0x77;
const WRITE = { at: 384, length: 768, value: 0x11 };
const SAMPLE = 1500;

before(registerStreamDrivers);

const file = (filename: string) => ({ driver: 'file', filename });

interface Outcome {
  readonly disk: Uint8Array;
  readonly seen: Uint8Array;
  readonly final: Uint8Array;
}

/** The overlay, before anything happens at once. */
async function prepare(): Promise<Uint8Array> {
  const sim = new Sim(1);
  sim.writeDisk('/top', new Uint8Array(0));
  const context = new AioContext(sim.backend());
  const named = { 'backing-file': 'base', 'backing-fmt': 'raw' } as const;
  await sim.complete(makeImage(context, file('/top'), { size: LENGTH, 'cluster-size': CLUSTER, ...named }));
  await context.stop();
  return sim.readDisk('/top')!;
}

async function run(image: Uint8Array, answers: readonly number[]): Promise<Outcome> {
  const sim = new Sim(7);
  sim.writeDisk('/top', image);
  sim.writeDisk('/base', new Uint8Array(LENGTH).fill(OLD));
  const context = new AioContext(sim.backend());
  const layer = { driver: 'qcow2', 'cache-clean-interval': 0, file: file('/top') };
  const backing = { driver: 'raw', file: file('/base') };
  const tree = { driver: 'copy-on-read', file: { ...layer, backing } };
  const blk = await sim.complete(BlockBackend.open(context, tree));
  const memory = (length: number, value: number): Iov =>
    Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(length)).fill(value)));
  const seen = memory(LENGTH - READ_AT, 0xee);
  const job = new StreamJob(blk, { id: 'stream', alone: (step) => step() });
  const works = [
    () => blk.read(READ_AT, seen),
    () => blk.write(WRITE.at, memory(WRITE.length, WRITE.value)),
    () => {
      job.start();
      return job.ended;
    },
  ];
  let choices = 0;
  sim.choose = (count) => (answers[choices++] ?? 0) % count;
  const running: Promise<void>[] = [];
  for (const work of works) sim.after(0, () => running.push(work()));
  await sim.run(() => running.length === works.length);
  await sim.complete(Promise.all(running));
  sim.choose = undefined;
  assert.equal(job.error, undefined);
  assert.equal(blk.root!.children[0]!.node.cow, undefined);
  const final = memory(LENGTH, 0xee);
  await sim.complete(blk.read(0, final));
  await sim.complete(blk.close());
  await context.stop();
  return { disk: sim.readDisk('/top')!, seen: seen.run(0), final: final.run(0) };
}

test('a reader, a writer and a stream at once, in any order', needs('qemu-img'), async (t) => {
  const image = await prepare();
  const random = new Prng(20);
  const disks = new Map<string, Uint8Array>();
  for (let order = 0; order < SAMPLE; order++) {
    // The first answers decide most. One that is too large is cut down to what there is.
    const answers = Array.from({ length: 30 }, () => random.below(6));
    const { disk, seen, final } = await run(image, answers);
    for (let at = 0; at < LENGTH; at++) {
      const written = at >= WRITE.at && at < WRITE.at + WRITE.length;
      const what = `answers ${answers.join(',')}: byte ${at}`;
      assert.equal(final[at], written ? WRITE.value : OLD, `${what} in the end`);
      const read = at < READ_AT ? OLD : seen[at - READ_AT];
      assert.ok(read === OLD || (written && read === WRITE.value), `${what} was read as ${read}`);
    }
    disks.set(createHash('sha256').update(disk).digest('hex'), disk);
  }
  t.diagnostic(`${SAMPLE} orders, ${disks.size} different images`);
  assert.ok(disks.size > 1);
  const path = join(scratch(t), 'image');
  for (const disk of disks.values()) {
    writeFileSync(path, disk);
    await peer('qemu-img', 'check', '-q', path);
  }
});
