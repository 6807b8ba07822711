/**
 * Dirty bitmaps of a node: which parts of it may have been written since the bitmap was made or cleared. Everything
 * belongs to the node's home context.
 *
 * - A write is recorded when it has ended, also when it failed (it may have changed something).
 * - What a longer disk has more is dirty: it may have been there before, with other bytes.
 * - A bitmap of the image (persistent) that is about to change is marked in use in the image before: if the process
 *   dies, nobody takes what is stored for the truth.
 */
import { CoMutex } from '../aio/co-mutex.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { BITS_MAX, PagedBits } from '../base/paged-bits.ts';
import { type Bytes, GiB, isPowerOfTwo, KiB, type Offset } from '../base/units.ts';
import { BitmapCheckpoints } from './bitmap-checkpoints.ts';
import { drain } from './drain.ts';
import type { BitmapStore, MaybePromise } from './driver.ts';
import { withdrawLeases } from './lease.ts';
import type { BlockNode } from './node.ts';

export const GRANULARITY_MIN: Bytes = 512;
export const GRANULARITY_MAX: Bytes = 2 * GiB;
/** Bytes of a name in UTF-8; as BITS_MAX, what qcow2 can store. */
const NAME_MAX = 1023;
/** Bitmaps of a node; each costs every write a look. */
const BITMAPS_MAX = 1024;

export interface BitmapOptions {
  /** Bytes that a bit stands for: a power of two, 512 to 2 GiB. Default: the cluster size, from 4 to 64 KiB. */
  readonly granularity?: Bytes | undefined;
  /** Kept in the image when it closes. Default false. */
  readonly persistent?: boolean | undefined;
  /** Does not record writes until it is enabled. Default false. */
  readonly disabled?: boolean | undefined;
}

export class DirtyBitmap {
  readonly name: string;
  readonly granularity: Bytes;
  readonly persistent: boolean;
  /** It is not known what it should hold: it can only be removed. */
  readonly inconsistent: boolean;
  /** Records writes. */
  enabled: boolean;
  /** How many rely on it as it is: exports, jobs. Until they have ended it is changed by writes only. */
  users = 0;
  readonly bits: PagedBits;
  /** Records writes in its place, while a backup is made of what it holds; see {@link NodeBitmaps.freeze}. */
  successor: DirtyBitmap | undefined;
  #size: Bytes;

  /** `size`: of the node, in bytes. */
  constructor(
    name: string,
    granularity: Bytes,
    size: Bytes,
    state: { readonly persistent: boolean; readonly inconsistent: boolean; readonly enabled: boolean },
  ) {
    this.name = name;
    this.granularity = granularity;
    this.persistent = state.persistent;
    this.inconsistent = state.inconsistent;
    this.enabled = state.enabled;
    this.#size = size;
    this.bits = new PagedBits(state.inconsistent ? 0 : Math.ceil(size / granularity));
  }

  get recording(): boolean {
    return this.enabled && !this.inconsistent;
  }

  /** Bytes of the disk. */
  get size(): Bytes {
    return this.#size;
  }

  /** Dirty bytes, in whole granules. */
  get dirty(): Bytes {
    return this.bits.count * this.granularity;
  }

  resize(size: Bytes): void {
    this.#size = size;
    this.successor?.resize(size);
    if (!this.inconsistent) this.bits.resize(Math.ceil(size / this.granularity));
  }

  /** A range has been written. Hot: allocates nothing where it is dirty already. */
  mark(at: Offset, length: Bytes): void {
    const end = Math.min(at + length, this.#size);
    if (end <= at) return;
    this.bits.set(Math.floor(at / this.granularity), Math.ceil(end / this.granularity) - 1);
  }

  /** Where the first dirty (or clean) byte of `at`..`end` is; `end` where there is none. Both inside the disk. */
  next(at: Offset, end: Offset, dirty: boolean): Offset {
    const { granularity } = this;
    const found = this.bits.next(Math.floor(at / granularity), Math.ceil(end / granularity), dirty);
    return Math.min(Math.max(found * granularity, at), end);
  }

  /** All of these are dirty. */
  holds(ranges: Ranges): boolean {
    let held = true;
    ranges((at, length) => {
      const end = Math.min(at + length, this.#size);
      if (at < end && this.next(at, end, false) < end) held = false;
    });
    return held;
  }

  /** Calls `visit` with each dirty range, from the first on. */
  eachRange(visit: (at: Offset, length: Bytes) => void): void {
    for (let at = this.next(0, this.#size, true); at < this.#size; ) {
      const end = this.next(at, this.#size, false);
      visit(at, end - at);
      at = this.next(end, this.#size, true);
    }
  }

  /** Takes over what is dirty in another bitmap of a disk of the same size. */
  merge(source: DirtyBitmap): void {
    if (source.granularity === this.granularity) {
      this.bits.or(source.bits);
      return;
    }
    source.eachRange((at, length) => this.mark(at, length));
  }
}

/** Calls `visit` with each of some ranges. */
type Ranges = (visit: (at: Offset, length: Bytes) => void) => void;

/** See {@link NodeBitmaps.freeze}. With `left`: on a drained node. Done also where it rejects. */
export type Thaw = (left?: Ranges) => Promise<void>;

/** The bitmaps of a node, by name. Control functions, one after the other: they may wait. */
export class NodeBitmaps {
  readonly #node: BlockNode;
  readonly #byName = new Map<string, DirtyBitmap>();
  #recording: DirtyBitmap[] = [];
  /** All that the image holds is here. */
  #loaded = false;
  readonly #mutex = new CoMutex('dirty bitmaps');
  /** Where the image is to have bitmaps that outlive a crash. */
  checkpoints: BitmapCheckpoints | null = null;
  readonly #hook = (at: Offset, length: Bytes): void => this.#written(at, length);

  constructor(node: BlockNode) {
    this.#node = node;
  }

  list(): readonly DirtyBitmap[] {
    return [...this.#byName.values()];
  }

  /** True while writes to the node are recorded. */
  get recording(): boolean {
    return this.#recording.length > 0;
  }

  /** ENOENT where there is none, EINVAL where those of the image are damaged, and could not be loaded. */
  get(name: string): DirtyBitmap {
    const bitmap = this.#byName.get(name);
    if (bitmap) return bitmap;
    const damage = this.#store?.damage;
    if (damage !== undefined) {
      throw new BlockError(Errno.EINVAL, `Could not use bitmap '${name}': those of the image are damaged: ${damage}`);
    }
    throw new BlockError(Errno.ENOENT, `Could not find bitmap '${name}' of node '${this.#node.name}'`);
  }

  /** EEXIST, EINVAL, EFBIG, ENOSPC; of a persistent one also EPERM (read-only), ENOTSUP (nowhere to keep it). */
  async add(name: string, options: BitmapOptions = {}): Promise<DirtyBitmap> {
    using _held = await this.#mutex.lock();
    const granularity = options.granularity ?? this.#defaultGranularity;
    const persistent = options.persistent ?? false;
    this.#assertPossible(name, granularity);
    if (persistent) this.#assertStorable(name, granularity);
    const state = { persistent, inconsistent: false, enabled: !(options.disabled ?? false) };
    const bitmap = new DirtyBitmap(name, granularity, this.#node.length, state);
    this.#byName.set(name, bitmap);
    await this.#refresh();
    if (persistent) this.checkpoints?.soon();
    return bitmap;
  }

  /** Also one that is inconsistent. EBUSY while somebody uses it. */
  async remove(name: string): Promise<void> {
    using _held = await this.#mutex.lock();
    const bitmap = this.#changeable(name, 'remove', true);
    if (bitmap.persistent) {
      using _drained = await drain(this.#node);
      this.checkpoints?.drop(bitmap);
      await this.#store?.remove(name);
    }
    this.#byName.delete(name);
    await this.#refresh();
  }

  /** It is about to be removed: nobody begins to rely on it until the answer is called. ENOENT, EBUSY, EPERM. */
  reserve(name: string): () => void {
    return heldBy(this.#changeable(name, 'remove', true));
  }

  /** Nothing is dirty any more. EBUSY, EINVAL (inconsistent). */
  async clear(name: string): Promise<void> {
    using _held = await this.#mutex.lock();
    const bitmap = this.#changeable(name, 'clear');
    await this.#use(bitmap);
    bitmap.bits.clear();
  }

  /** Begins to record writes, or stops. EBUSY, EINVAL (inconsistent). */
  async enable(name: string, enabled: boolean): Promise<void> {
    using _held = await this.#mutex.lock();
    const bitmap = this.#changeable(name, enabled ? 'enable' : 'disable');
    if (bitmap.enabled === enabled) return;
    await this.#use(bitmap);
    bitmap.enabled = enabled;
    await this.#refresh();
  }

  /** What is dirty in any of `sources` (bitmaps of another node, or names of this one's) is dirty in `target` too; all
   *  or nothing. EBUSY, EINVAL (inconsistent, or of another size). */
  async merge(target: string, sources: readonly (string | DirtyBitmap)[]): Promise<void> {
    using _held = await this.#mutex.lock();
    const into = this.#changeable(target, 'merge into');
    const from = sources.map((source) => (typeof source === 'string' ? this.#usable(source, 'merge') : source));
    // What is written meanwhile is not in it.
    const frozen = from.find(({ successor }) => successor !== undefined);
    if (frozen) throw new BlockError(Errno.EBUSY, `Could not merge bitmap '${frozen.name}': it is in use`);
    const other = from.find(({ size }) => size !== into.size);
    if (other) {
      const sizes = `it is of ${into.size} bytes, and bitmap '${other.name}' of ${other.size}`;
      throw new BlockError(Errno.EINVAL, `Could not merge into bitmap '${target}': ${sizes}`);
    }
    await this.#use(into);
    for (const source of from) into.merge(source);
  }

  /**
   * The bitmap stays as it is until the answer is called, and what is written meanwhile is recorded apart. Then what is
   * dirty is that, and with `left` not what was dirty before, but the ranges that it visits. EBUSY, EINVAL, ENOENT.
   */
  async freeze(name: string): Promise<{ readonly bitmap: DirtyBitmap; readonly thaw: Thaw }> {
    using _held = await this.#mutex.lock();
    const bitmap = this.#changeable(name, 'use');
    await this.#use(bitmap);
    bitmap.users++;
    const { granularity, size, enabled } = bitmap;
    bitmap.successor = new DirtyBitmap(name, granularity, size, { persistent: false, inconsistent: false, enabled });
    await this.#refresh();
    const thaw: Thaw = async (left) => {
      const { successor } = bitmap;
      if (successor === undefined) return;
      try {
        // The image may have been told of less.
        if (left !== undefined && !bitmap.holds(left)) await this.#use(bitmap);
      } finally {
        bitmap.successor = undefined;
        bitmap.users--;
        if (left !== undefined) {
          bitmap.bits.clear();
          left((at, length) => bitmap.mark(at, length));
        }
        bitmap.merge(successor);
        this.#record();
      }
    };
    return { bitmap, thaw };
  }

  /** Somebody relies on the bitmap until the answer is called. ENOENT, EINVAL (inconsistent). */
  share(name: string): { readonly bitmap: DirtyBitmap; readonly release: () => void } {
    const bitmap = this.#usable(name, 'use');
    return { bitmap, release: heldBy(bitmap) };
  }

  /** @internal The node has just opened, or is active again. */
  async load(): Promise<void> {
    const store = this.#store;
    if (!store) return;
    for (const { name, granularity, enabled, inconsistent } of store.stored) {
      const state = { persistent: true, inconsistent, enabled };
      const bitmap = new DirtyBitmap(name, granularity, this.#node.length, state);
      if (!inconsistent) await store.load(name, bitmap.bits);
      this.#byName.set(name, bitmap);
    }
    this.#loaded = true;
    await this.#refresh();
    if (this.#node.readOnly) return;
    await store.use(this.#recording.map(({ name }) => name));
    if (store.checkpointEvery === 0) return;
    const { aio } = this.#node;
    this.checkpoints = new BitmapCheckpoints(
      (callback) => aio.timer(callback, 'bitmap checkpoint'),
      () => this.#store,
      store.checkpointEvery,
      () => this.#checkpoint(),
    );
    // Nobody writes yet. What cannot be stored now is marked in use.
    await this.checkpoints.take(this.#kept).catch(() => undefined);
    this.checkpoints.begin();
  }

  /** @internal The node may be written again after it was inactive: as after {@link load}. */
  async use(): Promise<void> {
    if (this.#node.readOnly || this.#recording.length === 0) return;
    await this.#store?.use(this.#recording.filter(({ persistent }) => persistent).map(({ name }) => name));
    this.checkpoints?.soon();
  }

  /** @internal The node has become inactive: those that its image keeps are taken from there again by {@link load}. */
  async forget(): Promise<void> {
    for (const { name, persistent } of this.list()) if (persistent) this.#byName.delete(name);
    this.#loaded = false;
    this.checkpoints = null;
    await this.#refresh();
  }

  /** @internal Stores what is persistent: on a drained node, which is about to close unless `inUse`. */
  async store(inUse = false): Promise<void> {
    await this.checkpoints?.stop();
    // The image of one that is inactive is another's.
    if (!this.#loaded || !this.#node.live || this.#node.readOnly || this.#node.inactive) return;
    await this.#store?.store(this.#kept, inUse);
  }

  async #checkpoint(): Promise<void> {
    using _held = await this.#mutex.lock();
    using _drained = await drain(this.#node);
    if (this.#node.live && !this.#node.readOnly) await this.checkpoints!.take(this.#kept);
  }

  /** What the image is to hold. */
  get #kept(): DirtyBitmap[] {
    return this.list().filter(({ persistent, inconsistent }) => persistent && !inconsistent);
  }

  /** @internal The node's length may have changed. */
  follow(): void {
    if (this.#byName.size === 0) return;
    const { length } = this.#node;
    for (const bitmap of this.#byName.values()) {
      if (bitmap.size === length) continue;
      bitmap.resize(length);
      // The driver has marked it, before it changed the length.
      this.checkpoints?.drop(bitmap);
    }
  }

  get #store(): BitmapStore | undefined {
    return this.#node.impl?.bitmaps;
  }

  get #defaultGranularity(): Bytes {
    const { zeroAlignment, optimal } = this.#node.limits;
    const cluster = zeroAlignment || optimal || 64 * KiB;
    return isPowerOfTwo(cluster) ? Math.min(Math.max(cluster, 4 * KiB), 64 * KiB) : 64 * KiB;
  }

  #written(at: Offset, length: Bytes): void {
    const recording = this.#recording;
    // The disk has become longer, and this says so first.
    if (at + length > recording[0]!.size) this.follow();
    for (let i = 0; i < recording.length; i++) recording[i]!.mark(at, length);
  }

  #record(): void {
    this.#recording = this.list()
      .filter(({ recording }) => recording)
      .map((bitmap) => bitmap.successor ?? bitmap);
  }

  /** One hook, and only while there is something to record. Then nobody writes without being seen any more. */
  #refresh(): MaybePromise<void> {
    const { dirtyHooks } = this.#node;
    const before = this.#recording.length > 0;
    this.#record();
    const now = this.#recording.length > 0;
    if (now === before) return undefined;
    if (now) dirtyHooks.push(this.#hook);
    else dirtyHooks.splice(dirtyHooks.indexOf(this.#hook), 1);
    return withdrawLeases(this.#node);
  }

  #assertPossible(name: string, granularity: Bytes): void {
    const refuse = (errno: number, why: string): never => {
      throw new BlockError(errno, `Could not add bitmap '${name.slice(0, 100)}': ${why}`);
    };
    const bytes = new TextEncoder().encode(name).length;
    if (bytes === 0) refuse(Errno.EINVAL, 'its name is empty');
    if (bytes > NAME_MAX) refuse(Errno.EINVAL, `its name has ${bytes} bytes, and ${NAME_MAX} is the limit`);
    if (this.#byName.has(name)) refuse(Errno.EEXIST, 'there is one of this name');
    if (!isPowerOfTwo(granularity) || granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
      refuse(Errno.EINVAL, `its granularity is ${granularity}, not a power of two from 512 bytes to 2 GiB`);
    }
    if (this.#node.length / granularity > BITS_MAX) {
      refuse(Errno.EFBIG, `with a granularity of ${granularity} bytes it would have more than ${BITS_MAX} bits`);
    }
    if (this.#byName.size >= BITMAPS_MAX) refuse(Errno.ENOSPC, `there are ${BITMAPS_MAX} already`);
  }

  #assertStorable(name: string, granularity: Bytes): void {
    const refuse = (errno: number, why: string): never => {
      throw new BlockError(errno, `Could not add persistent bitmap '${name}': ${why}`);
    };
    if (this.#node.readOnly) refuse(Errno.EPERM, `node '${this.#node.name}' is read-only`);
    if (!this.#store) refuse(Errno.ENOTSUP, `driver '${this.#node.driver.name}' does not keep bitmaps`);
    this.#store!.assertStorable(name, granularity);
  }

  /** A bitmap that says something. */
  #usable(name: string, verb: string): DirtyBitmap {
    const bitmap = this.get(name);
    if (!bitmap.inconsistent) return bitmap;
    throw new BlockError(
      Errno.EINVAL,
      `Could not ${verb} bitmap '${name}': it is inconsistent and can only be removed`,
    );
  }

  #changeable(name: string, verb: string, broken = false): DirtyBitmap {
    const bitmap = broken ? this.get(name) : this.#usable(name, verb);
    const refuse = (errno: number, why: string): BlockError =>
      new BlockError(errno, `Could not ${verb} bitmap '${name}': ${why}`);
    if (bitmap.users > 0) throw refuse(Errno.EBUSY, 'it is in use by an export or a job');
    if (bitmap.persistent && this.#node.readOnly) throw refuse(Errno.EPERM, 'the image is open read-only');
    return bitmap;
  }

  /** The bitmap is about to differ from what the image holds. */
  async #use(bitmap: DirtyBitmap): Promise<void> {
    const store = this.#store;
    if (!bitmap.persistent || !store) return;
    using _drained = await drain(this.#node);
    await store.use([bitmap.name]);
    this.checkpoints?.drop(bitmap);
  }
}

/** Somebody more relies on the bitmap, until the answer is called. */
function heldBy(bitmap: DirtyBitmap): () => void {
  bitmap.users++;
  let held = true;
  return () => {
    if (held) bitmap.users--;
    held = false;
  };
}
