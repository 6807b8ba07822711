/**
 * For tests against QEMU: an image in a file that we and QEMU's tools change in turns, and a model of what must be in
 * it. Only one side has it open at a time.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pattern, peer } from '../../../test/harness.ts';
import type { AioContext } from '../../aio/context.ts';
import { Iov } from '../../base/memory.ts';
import { alignDown, alignUp, type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { checkImage } from '../../block/control.ts';
import { RequestFlags } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { BlockStatus } from '../../block/status.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage } from './testing.ts';
import { compareMap } from './testing-map.ts';
import { DiskModel } from './testing-model.ts';

/** What can be done to a range of the disk, by either side. `seed` says which bytes are written. */
export interface Change {
  readonly kind: 'write' | 'compressed' | 'zero' | 'unmap' | 'discard';
  readonly at: Offset;
  readonly length: Bytes;
  readonly seed: number;
}

export type Side = 'us' | 'QEMU';

/** An image below, from the lowest on. */
export interface Layer {
  readonly format: 'raw' | 'qcow2';
  readonly size: Bytes;
}

export interface ImagePlan {
  /** File names are relative to the image's folder. `backing-file` is made up by the layers. */
  readonly create: Qcow2CreateOptions;
  readonly layers?: readonly Layer[];
  /** Options of our node: caches and so on. */
  readonly node?: Readonly<Record<string, unknown>>;
}

/** No longer than that is read or written at a time, here and by qemu-io. */
const PIECE = MiB;

/** Every byte depends on its place; of odd seeds they can be compressed. */
export function contentOf({ at, length, seed }: Change): Uint8Array {
  if (seed % 2 === 0) return pattern(length, seed + (at % 65_521));
  const bytes = new Uint8Array(length);
  const tile = pattern(64, seed + (at % 65_521));
  for (let done = 0; done < length; done += tile.length) bytes.set(tile.subarray(0, length - done), done);
  return bytes;
}

/** The places where something ends and something else begins: of clusters, L2 tables, layers, the disk. */
export function placesOf({ create, layers = [] }: ImagePlan): Offset[] {
  const cluster = create['cluster-size'] ?? 64 * KiB;
  const tableSpan = (cluster / (create['extended-l2'] ? 16 : 8)) * cluster;
  const ends = layers.map(({ size }) => size);
  const all = [0, 3 * cluster, tableSpan, 2 * tableSpan, create.size, ...ends].map((at) => at - (at % cluster));
  return [...new Set(all)].filter((at) => at < create.size);
}

export class TestImage {
  readonly folder: string;
  readonly path: string;
  readonly plan: ImagePlan;
  readonly clusterSize: Bytes;
  model: DiskModel;
  /** By their names. */
  readonly snapshots = new Map<string, DiskModel>();
  version: 2 | 3;
  readonly #context: AioContext;
  #below: NodeOptions | null;
  #blk: BlockBackend | null = null;
  #files = 0;

  private constructor(context: AioContext, folder: string, plan: ImagePlan, below: Below) {
    this.#context = context;
    this.folder = folder;
    this.path = join(folder, 'image.qcow2');
    this.plan = plan;
    this.clusterSize = plan.create['cluster-size'] ?? 64 * KiB;
    this.version = plan.create.compat === '0.10' ? 2 : 3;
    this.#below = below.node;
    this.model = new DiskModel(alignUp(plan.create.size, 512), below.model);
  }

  /** Makes the layers and the image; the folder is empty. */
  static async make(context: AioContext, folder: string, plan: ImagePlan, maker: Side): Promise<TestImage> {
    const below = await makeLayers(folder, 'layer', plan);
    const image = new TestImage(context, folder, plan, below);
    const create: Record<string, unknown> = { ...plan.create };
    const { 'data-file': dataFile, size } = plan.create;
    if (dataFile !== undefined) create['data-file'] = join(folder, dataFile);
    if (below.path !== undefined) Object.assign(create, { 'backing-file': below.path, 'backing-fmt': below.format });
    if (maker === 'QEMU') {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...qemuOptions(create), image.path, `${size}`);
      return image;
    }
    for (const path of [image.path, ...(dataFile === undefined ? [] : [create['data-file'] as string])]) {
      writeFileSync(path, '');
    }
    await makeImage(context, ...image.#filesOf(create as unknown as Qcow2CreateOptions));
    return image;
  }

  #filesOf(create: Qcow2CreateOptions): [NodeOptions, Qcow2CreateOptions, NodeOptions?] {
    const file = { driver: 'file', filename: this.path };
    const data = create['data-file'];
    return data === undefined ? [file, create] : [file, create, { driver: 'file', filename: data }];
  }

  /** Our node of it; opened when it is not. */
  async open(options: Readonly<Record<string, unknown>> = {}): Promise<BlockBackend> {
    if (this.#blk) return this.#blk;
    const discard = { discard: 'unmap' } as const;
    const data = this.plan.create['data-file'];
    this.#blk = await BlockBackend.open(this.#context, {
      ...{ driver: 'qcow2', ...discard, ...this.plan.node, ...options },
      file: { driver: 'file', filename: this.path, ...discard },
      ...(data === undefined ? {} : { 'data-file': { driver: 'file', filename: join(this.folder, data), ...discard } }),
      ...(this.#below === null ? {} : { backing: this.#below }),
    } as NodeOptions);
    return this.#blk;
  }

  async close(): Promise<void> {
    const blk = this.#blk;
    this.#blk = null;
    await blk?.close();
  }

  /** What a change leaves behind; the model is not changed. */
  outcome(change: Change): { readonly at: Offset; readonly length: Bytes; readonly bytes: Uint8Array | 'zeroes' } {
    const { kind, at, length } = change;
    if (kind === 'write' || kind === 'compressed') return { at, length, bytes: contentOf(change) };
    if (kind !== 'discard') return { at, length, bytes: 'zeroes' };
    // Whole clusters only; and without a zero flag what is below would come to light.
    const from = alignUp(at, this.clusterSize);
    const end = at + length === this.model.length ? at + length : alignDown(at + length, this.clusterSize);
    const done = this.version === 2 && this.#below !== null ? 0 : Math.max(0, end - from);
    return { at: from, length: done, bytes: 'zeroes' };
  }

  /** Changes the model. */
  apply(change: Change): void {
    const { at, length, bytes } = this.outcome(change);
    if (bytes === 'zeroes') this.model.zero(at, length);
    else this.model.write(at, bytes);
  }

  /** By us. The model is not changed. */
  async request(change: Change): Promise<void> {
    const blk = await this.open();
    const { kind, at, length } = change;
    if (kind === 'discard') await blk.discard(at, length);
    else if (kind === 'zero' || kind === 'unmap') {
      await blk.writeZeroes(at, length, kind === 'unmap' ? RequestFlags.MAY_UNMAP : 0);
    } else {
      const iov = this.memory(length);
      iov.copyFrom(contentOf(change));
      await blk.write(at, iov, kind === 'compressed' ? RequestFlags.COMPRESSED : 0);
    }
  }

  change(by: Side, ...changes: readonly Change[]): Promise<void> {
    return by === 'us' ? this.ours(...changes) : this.theirs(...changes);
  }

  async ours(...changes: readonly Change[]): Promise<void> {
    for (const change of changes) {
      await this.request(change);
      this.apply(change);
    }
  }

  async theirs(...changes: readonly Change[]): Promise<void> {
    await this.close();
    for (const group of groupsForPeer(changes)) {
      const commands = group.flatMap((change) => this.#commands(change)).flatMap((one) => ['-c', one]);
      await peer('qemu-io', '-f', 'qcow2', '-d', 'unmap', ...commands, this.path);
      for (const change of group) this.apply(change);
    }
  }

  /** For qemu-io. */
  #commands(change: Change): string[] {
    const { kind, at, length } = change;
    if (kind === 'discard') return [`discard ${at} ${length}`];
    if (kind === 'zero' || kind === 'unmap') return [`write -z ${kind === 'unmap' ? '-u' : ''} ${at} ${length}`];
    const path = join(this.folder, `content-${this.#files++ % 64}`);
    writeFileSync(path, contentOf(change));
    const range = `-s ${path} ${at} ${length}`;
    // QEMU does not compress over what is allocated; and where discards do nothing it stays so.
    if (kind === 'write' || (this.version === 2 && this.#below !== null)) return [`write ${range}`];
    return [`discard ${at} ${length}`, `write -c ${range}`];
  }

  async resize(length: Bytes, by: Side, prealloc: 'off' | 'falloc' | 'full' = 'off'): Promise<void> {
    if (by === 'us') await (await this.open()).truncate(length, prealloc);
    else {
      await this.close();
      const mode = prealloc === 'off' ? [] : [`--preallocation=${prealloc}`];
      await peer('qemu-img', 'resize', '-q', '-f', 'qcow2', '--shrink', ...mode, this.path, `${length}`);
    }
    this.model.resize(length);
  }

  async snapshot(what: 'create' | 'apply' | 'delete', name: string, by: Side): Promise<void> {
    if (by === 'us') {
      const blk = await this.open();
      using _drained = await blk.drain();
      await (blk.root!.impl as Qcow2Node).snapshots[what](name);
    } else {
      await this.close();
      const letter = { create: '-c', apply: '-a', delete: '-d' }[what];
      await peer('qemu-img', 'snapshot', '-q', letter, name, this.path);
    }
    if (what === 'create') this.snapshots.set(name, this.model.copy());
    else if (what === 'apply') this.model = this.snapshots.get(name)!.copy();
    else this.snapshots.delete(name);
  }

  async amend(changes: Readonly<Record<string, unknown>>, by: Side): Promise<void> {
    if (by === 'us') {
      const blk = await this.open();
      using _drained = await blk.drain();
      await (blk.root!.impl as Qcow2Node).amend(changes);
    } else {
      await this.close();
      await peer('qemu-img', 'amend', '-q', '-f', 'qcow2', ...qemuOptions(changes), this.path);
    }
    if (changes.compat !== undefined) this.version = changes.compat === '0.10' ? 2 : 3;
  }

  /** The image names other layers; what it has itself must be whole chunks of the model. */
  async rebase(layers: readonly Layer[], by: Side): Promise<void> {
    const below = await makeLayers(this.folder, 'other', { ...this.plan, layers });
    if (by === 'us') await this.amend({ 'backing-file': below.path ?? null, 'backing-fmt': below.format ?? null }, by);
    else {
      await this.close();
      const onto = below.path === undefined ? ['-b', ''] : ['-b', below.path, '-F', below.format!];
      await peer('qemu-img', 'rebase', '-q', '-u', '-f', 'qcow2', ...onto, this.path);
    }
    await this.close();
    this.#below = below.node;
    this.model = this.model.over(below.model);
  }

  memory(length: Bytes): Iov {
    return Iov.of(this.#context.backend.memory(new Uint8Array(new SharedArrayBuffer(length))));
  }

  async read(at: Offset, length: Bytes): Promise<Uint8Array> {
    const iov = this.memory(length);
    await (await this.open()).read(at, iov);
    return iov.run(0);
  }

  /** What we read is what the model says, everywhere; and where we say that zeroes are there are zeroes. */
  async verifyOurs(model: DiskModel = this.model): Promise<void> {
    const blk = await this.open();
    assert.equal(blk.length, model.length);
    for (const [at, bytes] of model.extents()) assertSame(await this.read(at, bytes.length), bytes, at);
    const status = new BlockStatus();
    for (let at = 0; at < model.length; at += status.length) {
      await blk.wholeExtent(at, model.length - at, status);
      for (let done = 0; done < status.length && !status.zero; done += PIECE) {
        const length = Math.min(PIECE, status.length - done);
        assertSame(await this.read(at + done, length), model.read(at + done, length), at + done);
      }
      if (status.zero) assertZeroes(model, at, status.length);
    }
  }

  /** Closes it; QEMU finds no fault, reads what the model says, and finds everything where we find it. */
  async verifyTheirs(): Promise<void> {
    await this.check();
    const blk = await this.open({ 'read-only': true });
    await compareMap(this.path, blk);
    await this.close();
    const raw = join(this.folder, 'model.raw');
    this.model.store(raw);
    await peer('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw', this.path, raw);
    if (this.plan.create['data-file-raw']) {
      const data = join(this.folder, this.plan.create['data-file']!);
      await peer('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'raw', data, raw);
    }
  }

  /** Closes it; QEMU and we find no fault in it, and count the same. */
  async check(): Promise<void> {
    await this.close();
    const json = await peer('qemu-img', 'check', '-f', 'qcow2', '--output=json', this.path);
    const theirs = JSON.parse(json) as Readonly<Record<string, unknown>>;
    const ours = await checkImage(this.#context, 'qcow2', { file: { driver: 'file', filename: this.path } }, 'none');
    assert.deepEqual([ours.messages, ours.checkErrors, ours.corruptions, ours.leaks], [[], 0, 0, 0]);
    const counts = {
      'image-end-offset': ours.imageEndOffset,
      'total-clusters': ours.totalClusters,
      // QEMU 7.2 does not count the cluster at the beginning of a data file, nor that the next one is elsewhere.
      ...(this.plan.create['data-file'] === undefined
        ? { 'allocated-clusters': ours.allocatedClusters, 'fragmented-clusters': ours.fragmentedClusters }
        : {}),
      'compressed-clusters': ours.compressedClusters,
    };
    for (const [name, count] of Object.entries(counts)) assert.equal(count, theirs[name] ?? 0, name);
  }

  /** Every snapshot reads, by both sides, as the disk did when it was taken. */
  async verifySnapshots(): Promise<void> {
    const raw = join(this.folder, 'model.raw');
    const shown = join(this.folder, 'snapshot.raw');
    for (const [name, model] of this.snapshots) {
      await this.close();
      model.store(raw);
      // QEMU shows a snapshot with the length that the disk has now.
      if (model.length === this.model.length) {
        await peer('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', '-l', `snapshot.name=${name}`, this.path, shown);
        await peer('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'raw', shown, raw);
      }
      await this.open({ snapshot: name, 'read-only': true });
      await this.verifyOurs(model);
      await this.close();
    }
  }
}

export function assertSame(found: Uint8Array, wanted: Uint8Array, at: Offset): void {
  if (Buffer.compare(found, wanted) === 0) return;
  const first = found.findIndex((byte, i) => byte !== wanted[i]);
  const count = found.reduce((sum, byte, i) => sum + (byte === wanted[i] ? 0 : 1), 0);
  assert.fail(
    `byte ${at + first} is ${found[first]} and not ${wanted[first]}; ${count} of ${found.length} at ${at} differ`,
  );
}

function assertZeroes(model: DiskModel, at: Offset, length: Bytes): void {
  for (const [from, bytes] of model.extents()) {
    const inside = bytes.subarray(Math.max(0, at - from), Math.max(0, at + length - from));
    const bad = inside.findIndex((byte) => byte !== 0);
    if (bad >= 0)
      assert.fail(`${length} bytes at ${at} are said to be zeroes; byte ${Math.max(at, from) + bad} is not`);
  }
}

/** QEMU 7.2 may pack a compressed cluster next to one that it has freed meanwhile, although somebody else has that
 *  place by now; who begins anew does not remember the place. */
function groupsForPeer(changes: readonly Change[]): Change[][] {
  const groups: Change[][] = [];
  let packed = false;
  let others = true;
  for (const change of changes) {
    const packs = change.kind === 'compressed';
    if (groups.length === 0 || (packs && packed && others)) {
      groups.push([]);
      packed = false;
    }
    groups.at(-1)!.push(change);
    packed ||= packs;
    others = !packs;
  }
  return groups;
}

interface Below {
  readonly node: NodeOptions | null;
  readonly model?: DiskModel;
  readonly path?: string;
  readonly format?: 'raw' | 'qcow2';
}

/** The images below, with something at every place that matters. */
async function makeLayers(folder: string, name: string, plan: ImagePlan): Promise<Below> {
  let below: Below = { node: null };
  for (const [i, { format, size }] of (plan.layers ?? []).entries()) {
    const path = join(folder, `${name}-${i}`);
    const model = new DiskModel(size, below.model);
    const on = below.path === undefined ? [] : ['-b', below.path, '-F', below.format!];
    await peer('qemu-img', 'create', '-q', '-f', format, ...on, path, `${size}`);
    const commands: string[] = [];
    for (const [n, place] of placesOf(plan).entries()) {
      const at = place + 512 * i;
      const length = Math.min(3 * KiB, size - at);
      if (length <= 0) continue;
      const seed = 1000 * (i + name.length) + n;
      const change: Change = { kind: 'write', at, length, seed };
      const content = join(folder, `layer-content-${n}`);
      writeFileSync(content, contentOf(change));
      commands.push('-c', `write -s ${content} ${at} ${length}`);
      model.write(at, contentOf(change));
    }
    if (commands.length > 0) await peer('qemu-io', '-f', format, ...commands, path);
    const file = { driver: 'file', filename: path };
    const node: NodeOptions = {
      driver: format,
      'read-only': true,
      file,
      ...(format === 'raw' ? {} : { backing: below.node }),
    };
    below = { node, model, path, format };
  }
  return below;
}

/** The options of an image as qemu-img takes them. */
export function qemuOptions(options: object): string[] {
  const named = options as Readonly<Record<string, unknown>>;
  const { size, 'backing-file': backing, 'backing-fmt': format, ...rest } = named;
  const pairs = Object.entries(rest).map(([name, value]) => {
    const text = value === true ? 'on' : value === false ? 'off' : value;
    return `${name.replaceAll('-', '_')}=${text}`;
  });
  return [
    ...(pairs.length > 0 ? ['-o', pairs.join(',')] : []),
    ...(backing === undefined ? [] : ['-b', `${backing}`]),
    ...(format === undefined ? [] : ['-F', `${format}`]),
  ];
}
