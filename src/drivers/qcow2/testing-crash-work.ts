/** For tests: what a guest does to an image in a simulated world, noted in a journal and in a model. */
import { AioContext } from '../../aio/context.ts';
import { DiskJournal } from '../../aio/sim/journal.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { alignDown, alignUp, type Bytes, type Offset, SECTOR } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage } from './testing.ts';
import {
  BACKING,
  fillSectors,
  GARBAGE,
  type GuestContent,
  GuestModel,
  type GuestOp,
  type Region,
  type SectorValue,
  sectorsOf,
  valueOfSector,
} from './testing-crash-model.ts';

export const IMAGE = '/image.qcow2';
export const DATA = '/data.raw';
export const BASE = '/base.raw';

/** A kind of image. */
export interface CrashFormat {
  readonly name: string;
  readonly create: Qcow2CreateOptions;
  /** More options of the node. */
  readonly node?: Readonly<Record<string, unknown>>;
  readonly regions: readonly Region[];
  /** Of the backing file, where there is one. */
  readonly backing?: Bytes;
}

export type Step =
  | { readonly do: 'write' | 'compress' | 'discard'; readonly at: Offset; readonly length: Bytes }
  | { readonly do: 'zero'; readonly at: Offset; readonly length: Bytes; readonly unmap?: boolean }
  | { readonly do: 'flush' | 'reopen' | 'create' | 'apply' | 'delete' }
  | { readonly do: 'resize'; readonly size: Bytes }
  | { readonly do: 'amend'; readonly changes: Readonly<Record<string, unknown>> };

const CONTROL: ReadonlySet<string> = new Set(['reopen', 'create', 'apply', 'delete', 'resize', 'amend']);

export function describeStep(step: Step): string {
  if ('at' in step) return `${step.do} ${step.at}+${step.length}${step.do === 'zero' && step.unmap ? ' unmap' : ''}`;
  if (step.do === 'resize') return `resize ${step.size}`;
  return step.do === 'amend' ? `amend ${JSON.stringify(step.changes)}` : step.do;
}

/** Files with what is in them, and what a guest finds there. */
export interface Prepared {
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly content: GuestContent;
  readonly snapshots: ReadonlyMap<string, GuestContent>;
}

/** The node over the files of a simulated disk. */
export function nodeOf(format: CrashFormat, more: Readonly<Record<string, unknown>> = {}): NodeOptions {
  return {
    ...{ driver: 'qcow2', discard: 'unmap', 'cache-clean-interval': 0, ...format.node },
    file: { driver: 'file', filename: IMAGE },
    ...(format.create['data-file'] === undefined ? {} : { 'data-file': { driver: 'file', filename: DATA } }),
    ...(format.backing === undefined
      ? {}
      : { backing: { driver: 'raw', 'read-only': true, file: { driver: 'file', filename: BASE } } }),
    ...more,
  };
}

/** A guest of an image in a simulated world. */
export class Guest {
  readonly sim: Sim;
  readonly context: AioContext;
  readonly format: CrashFormat;
  readonly model: GuestModel;
  readonly journal = new DiskJournal();
  /** What was refused, or has failed. */
  readonly errors: BlockError[] = [];
  blk!: BlockBackend;
  #number: number;

  /** `firstNumber`: of its writes. */
  constructor(format: CrashFormat, prepared: Prepared, seed: number, firstNumber: number) {
    this.sim = new Sim(seed);
    for (const [path, bytes] of prepared.files) this.sim.writeDisk(path, bytes);
    this.context = new AioContext(this.sim.backend());
    this.format = format;
    this.model = new GuestModel(format.regions, prepared.content);
    for (const [name, content] of prepared.snapshots) this.model.addSnapshot(name, content);
    this.#number = firstNumber;
  }

  /** Opens the image; what is done to the disk is noted from here on. */
  async open(): Promise<void> {
    this.sim.disk.journal = this.journal;
    await this.sim.complete(this.#open());
  }

  /** Does all steps, `atOnce` of them at a time; control functions alone. */
  async perform(steps: readonly Step[], atOnce = 1): Promise<void> {
    for (let i = 0; i < steps.length; ) {
      let end = i + 1;
      if (!CONTROL.has(steps[i]!.do)) while (end < steps.length && !CONTROL.has(steps[end]!.do)) end++;
      const part = steps.slice(i, end);
      i = end;
      let next = 0;
      const worker = async (): Promise<void> => {
        while (next < part.length) await this.#step(part[next++]!);
      };
      await this.sim.complete(Promise.all(Array.from({ length: Math.min(atOnce, part.length) }, worker)));
      if (atOnce > 1) await this.sim.complete(this.#look());
    }
  }

  async close(): Promise<void> {
    const op = this.model.begin(this.journal.mark());
    await this.sim.complete(this.blk.close());
    op.ended = this.journal.mark();
    this.model.flush(op);
    await this.context.stop();
  }

  /** As close(), where something may have failed. */
  async closeAnyway(): Promise<void> {
    try {
      await this.sim.complete(this.blk.close());
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.errors.push(error);
    }
    await this.context.stop();
  }

  /** What a guest reads now. */
  read(): Promise<GuestContent> {
    return this.sim.complete(readContent(this.blk, this.format.regions));
  }

  async #open(): Promise<void> {
    this.blk = await openGuest(this.sim, this.context, nodeOf(this.format));
  }

  get #node(): Qcow2Node {
    return this.blk.root!.impl as unknown as Qcow2Node;
  }

  /** Several writes at once may have ended in any order. */
  async #look(): Promise<void> {
    const { values } = await readContent(this.blk, this.format.regions);
    for (const [sector, value] of values) this.model.current.set(sector, value);
  }

  async #step(step: Step): Promise<void> {
    const op = this.model.begin(this.journal.mark());
    try {
      await this.#do(step, op);
      op.ended = this.journal.mark();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.errors.push(error);
      this.model.size = this.blk.length;
      // What failed may have been done in part.
      await this.#look().catch((failure: unknown) => this.errors.push(failure as BlockError));
    }
  }

  async #do(step: Step, op: GuestOp): Promise<void> {
    const { model, blk } = this;
    switch (step.do) {
      case 'write':
      case 'compress': {
        const value = this.#number++;
        const bytes = new Uint8Array(new SharedArrayBuffer(step.length));
        fillSectors(bytes, step.at / SECTOR, () => value);
        model.write(op, step.at, step.length, value);
        const flags = step.do === 'compress' ? RequestFlags.COMPRESSED : 0;
        return blk.write(step.at, Iov.of(this.context.backend.memory(bytes)), flags);
      }
      case 'zero':
        model.write(op, step.at, step.length, 0);
        return blk.writeZeroes(step.at, step.length, step.unmap ? RequestFlags.MAY_UNMAP : 0);
      case 'discard':
        this.#expectDiscard(op, step.at, step.length);
        return blk.discard(step.at, step.length);
      case 'flush':
        await blk.flush();
        model.flush(op);
        return undefined;
      case 'reopen': {
        await blk.close();
        model.flush(op);
        return this.#open();
      }
      default: {
        using _drained = await blk.drain();
        return this.#control(step, op);
      }
    }
  }

  /** Whole clusters go; where there are no zero clusters and something is below, nothing does. */
  #expectDiscard(op: GuestOp, at: Offset, length: Bytes): void {
    const { create, backing } = this.format;
    if (create.compat === '0.10' && backing !== undefined) return;
    const cluster = create['cluster-size']!;
    const from = alignUp(at, cluster);
    const to = at + length === this.model.size ? at + length : alignDown(at + length, cluster);
    if (to > from) this.model.write(op, from, to - from, 0);
  }

  async #control(step: Step, op: GuestOp): Promise<void> {
    const { model } = this;
    const { snapshots } = this.#node;
    if (step.do !== 'resize') model.sharing.push(op);
    switch (step.do) {
      case 'resize':
        return this.#resize(step.size, op);
      case 'create': {
        const name = `s${model.snapshots.length}`;
        model.createSnapshot(op, name);
        await snapshots.create(name);
        break;
      }
      case 'apply': {
        const snapshot = model.alive();
        if (!snapshot) return undefined;
        for (const { at, length } of model.regions) {
          model.write(op, at, length, (sector) => snapshot.values.get(sector) ?? 0);
        }
        model.resize(op, snapshot.size);
        await snapshots.apply(snapshot.name);
        break;
      }
      case 'delete': {
        const snapshot = model.alive();
        if (!snapshot) return undefined;
        model.deleteSnapshot(op, snapshot.name);
        await snapshots.delete(snapshot.name);
        break;
      }
      case 'amend':
        await this.#node.amend(step.changes);
        break;
    }
    // All of them leave everything on stable storage.
    model.flush(op);
  }

  /** What comes is zeroes as soon as it is seen. Of what goes the rest of the last cluster stays, behind the end. */
  async #resize(size: Bytes, op: GuestOp): Promise<void> {
    const { model } = this;
    const old = model.size;
    const cluster = this.format.create['cluster-size']!;
    const { began } = op;
    if (size > old) model.write({ began, ended: began, stable: true }, old, size - old, 0);
    else if (alignUp(size, cluster) < old) model.write(op, alignUp(size, cluster), old - alignUp(size, cluster), 0);
    model.resize(op, size);
    await this.blk.truncate(size);
  }
}

/** Opens an image in a simulated world, whose time waits for what Node's threads compress. */
export async function openGuest(sim: Sim, context: AioContext, node: NodeOptions): Promise<BlockBackend> {
  const blk = await BlockBackend.open(context, node);
  const { image } = blk.root!.impl as unknown as Qcow2Node;
  sim.outside = () => image.compressed.running > 0;
  return blk;
}

/** What a node holds in some regions. */
export async function readContent(blk: BlockBackend, regions: readonly Region[]): Promise<GuestContent> {
  const size = blk.length;
  const values = new Map<number, SectorValue>();
  for (const { at, length } of regions) {
    const take = Math.min(length, size - at);
    if (take <= 0) continue;
    const bytes = new Uint8Array(new SharedArrayBuffer(take));
    await blk.read(at, Iov.of(blk.context.backend.memory(bytes)));
    addValues(values, at, bytes);
  }
  return { size, values };
}

/** Notes what the sectors of `bytes`, which are from `at` on, hold. */
export function addValues(values: Map<number, SectorValue>, at: Offset, bytes: Uint8Array): void {
  for (let from = 0; from < bytes.length; from += SECTOR) {
    const sector = (at + from) / SECTOR;
    const part = bytes.subarray(from, from + SECTOR);
    // An end in the middle of a sector does not happen here.
    values.set(sector, part.length === SECTOR ? valueOfSector(part, sector) : GARBAGE);
  }
}

/** An image that steps have been done to, closed. */
export async function prepare(format: CrashFormat, steps: readonly Step[]): Promise<Prepared> {
  const files = new Map([[IMAGE, new Uint8Array(0)]]);
  const values = new Map<number, SectorValue>();
  const { size } = format.create;
  for (const sector of sectorsOf(format.regions, size)) {
    values.set(sector, sector * SECTOR < (format.backing ?? 0) ? BACKING : 0);
  }
  if (format.create['data-file'] !== undefined) files.set(DATA, new Uint8Array(0));
  if (format.backing !== undefined) {
    const base = new Uint8Array(format.backing);
    fillSectors(base, 0, () => BACKING);
    files.set(BASE, base);
  }
  const guest = new Guest(format, { files, content: { size, values }, snapshots: new Map() }, 1, 2);
  const child = (filename: string): NodeOptions => ({ driver: 'file', filename });
  const data = format.create['data-file'] === undefined ? undefined : child(DATA);
  await guest.sim.complete(makeImage(guest.context, child(IMAGE), format.create, data));
  await guest.open();
  await guest.perform(steps);
  await guest.close();
  if (guest.errors.length > 0) throw guest.errors[0];
  const { current, size: sizeNow, snapshots } = guest.model;
  return {
    files: new Map([...files.keys()].map((path) => [path, guest.sim.readDisk(path)!] as const)),
    content: { size: sizeNow, values: new Map(current) },
    snapshots: new Map(snapshots.map((one) => [one.name, { size: one.size, values: one.values }] as const)),
  };
}
