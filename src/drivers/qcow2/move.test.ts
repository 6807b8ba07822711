/**
 * Moves of an image to another context with each of their reads, writes and flushes failing once: the disk is then on
 * one side, whole, with its bitmaps, and the image is clean.
 */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { type ScriptedFault, Sim } from '../../aio/sim/sim.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { checkOpen } from '../../block/control.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { activate, type Departure, letGo, moveIn, moveOut, nodesBelow } from '../../block/move.ts';
import { makeImage, registerQcow2 } from './testing.ts';

const SIZE = 2 * MiB;
const BLOCK = 4 * KiB;
const FILE = { driver: 'file', filename: '/image', locking: 'off' };

before(() => registerQcow2());

/** A disk, and what must be on it and in its bitmaps. */
class Subject {
  readonly sim: Sim;
  readonly here: AioContext;
  readonly there: AioContext;
  readonly model = new Uint8Array(SIZE);
  readonly dirty = new Set<number>();
  readonly #prng: Prng;
  blk!: BlockBackend;

  constructor(seed: number) {
    this.sim = new Sim(seed);
    this.here = new AioContext(this.sim.backend('here'), { name: 'here' });
    this.there = new AioContext(this.sim.backend('there'), { name: 'there' });
    this.#prng = new Prng(seed);
  }

  async open(node: Readonly<Record<string, unknown>>): Promise<void> {
    this.sim.writeDisk('/image', new Uint8Array(0));
    await makeImage(this.here, FILE, { size: SIZE, 'cluster-size': BLOCK });
    this.blk = await BlockBackend.open(this.here, { driver: 'qcow2', file: FILE, ...node } as NodeOptions);
    const { bitmaps } = this.blk.root!;
    await bitmaps.add('kept', { persistent: true, granularity: BLOCK });
    await bitmaps.add('own', { granularity: BLOCK });
    await this.writeSome();
  }

  async writeSome(): Promise<void> {
    const { backend } = this.blk.context;
    for (let i = 0; i < 12; i++) {
      const at = this.#prng.below(SIZE / BLOCK) * BLOCK;
      const memory = backend.memory(this.#prng.fill(new Uint8Array(new SharedArrayBuffer(BLOCK))));
      await this.blk.write(at, Iov.of(memory));
      this.model.set(memory.bytes, at);
      this.dirty.add(at);
    }
  }

  /** As an IOThread does it; true when the disk has moved. */
  async move(): Promise<boolean> {
    const leaving = await moveOut(departure(this.blk));
    let blk: BlockBackend;
    try {
      const opened = [...(await moveIn(this.there, structuredClone(leaving.graph))).values()].reverse();
      blk = await BlockBackend.open(this.there, opened[0]!.name);
      await letGo(opened);
    } catch (error) {
      await leaving.back();
      throw error;
    }
    leaving.end();
    await this.blk.close();
    this.blk = blk;
    await activate(nodesBelow(blk.root!));
    return true;
  }

  async verify(lost: boolean, names = ['kept', 'own']): Promise<void> {
    const memory = this.blk.context.backend.memory(new Uint8Array(new SharedArrayBuffer(SIZE)));
    await this.blk.read(0, Iov.of(memory));
    assert.ok(Buffer.compare(memory.bytes, this.model) === 0, 'other bytes than were written');
    const bitmaps = this.blk.root!.bitmaps.list();
    assert.deepEqual(bitmaps.map(({ name }) => name).sort(), names);
    assert.ok(bitmaps.every(({ inconsistent }) => !inconsistent));
    for (const bitmap of bitmaps) {
      const marked = [...Array(SIZE / BLOCK).keys()].filter(
        (i) => bitmap.next(i * BLOCK, (i + 1) * BLOCK, true) === i * BLOCK,
      );
      assert.deepEqual(
        marked.map((i) => i * BLOCK),
        [...this.dirty].sort((a, b) => a - b),
        bitmap.name,
      );
    }
    try {
      const { corruptions, checkErrors } = await checkOpen(this.blk, 'none');
      assert.deepEqual({ corruptions, checkErrors }, { corruptions: 0, checkErrors: 0 });
    } catch (error) {
      // A check flushes first, which a file that has lost a write refuses (L6).
      if (!(error instanceof BlockError && lost)) throw error;
    }
  }
}

function departure(blk: BlockBackend): Departure {
  const nodes = () => nodesBelow(blk.root!);
  return { name: 'image', where: 'there', nodes, backends: new Set([blk]), held: new Set() };
}

/** A move with one fault; answers whether the fault came, and whether the disk moved. */
async function withFault(fault: ScriptedFault, node: Readonly<Record<string, unknown>>): Promise<[boolean, boolean]> {
  const subject = new Subject(5);
  const { sim } = subject;
  const play = async (): Promise<[boolean, boolean]> => {
    await subject.open(node);
    sim.inject(fault);
    let moved = false;
    try {
      moved = await subject.move();
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
    }
    const came = sim.faults.waiting === 0;
    if (!came) {
      await subject.blk.close().catch(() => undefined);
      return [came, moved];
    }
    await subject.verify(fault.op === 'datasync');
    // It goes on where it is, and can move again unless its file has lost a write (L6).
    await subject.writeSome();
    await subject.verify(fault.op === 'datasync');
    const again = await subject.move().catch((error: BlockError) => error);
    if (again !== true && !moved) assert.ok(came && fault.op === 'datasync', String(again));
    await subject.verify(fault.op === 'datasync');
    try {
      await subject.blk.close();
    } catch (error) {
      assert.ok(!moved && fault.op === 'datasync', String(error));
      return [came, moved];
    }
    // What the next who opens it finds.
    subject.blk = await BlockBackend.open(subject.here, { driver: 'qcow2', file: FILE, ...node } as NodeOptions);
    await subject.verify(false, ['kept']);
    await subject.blk.close();
    return [came, moved];
  };
  const result = await sim.complete(play());
  await sim.complete(Promise.all([subject.here.stop(), subject.there.stop()]));
  return result;
}

for (const node of [{}, { 'lazy-refcounts': true }]) {
  test(`B8 every read, write and flush of a move fails once: ${JSON.stringify(node)}`, {
    timeout: 60_000,
  }, async (t) => {
    let [cases, stayed] = [0, 0];
    for (const op of ['read', 'write', 'datasync', 'truncate'] as const) {
      for (let nth = 1; ; nth++) {
        assert.ok(nth < 300, 'too many operations');
        try {
          const [came, moved] = await withFault({ op, nth, errno: Errno.EIO }, node);
          if (!came) break;
          cases++;
          if (!moved) stayed++;
        } catch (error) {
          throw new Error(`${op} ${nth}: ${(error as Error).message}`, { cause: error });
        }
      }
    }
    t.diagnostic(`${cases} cases, in ${stayed} the disk stayed`);
    assert.ok(cases > 20 && stayed > 10);
  });
}
