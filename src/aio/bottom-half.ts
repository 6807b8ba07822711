/**
 * Bottom halves: callbacks that run once, in their AioContext, in its next turn (SEMANTICS E1-E5).
 *
 * At home a BottomHalf is an object in two lists. Other threads hold a {@link RemoteBottomHalf}: a bit in the context's
 * shared words and a way to wake it, since JavaScript objects cannot be shared between threads.
 */
import { assert, Bug } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import { REMOTE_BH_SLOTS, SharedWord } from './context-shared.ts';

/** An idle bottom half runs at least this often. */
export const IDLE_NS = 10_000_000;

export class BottomHalf {
  readonly name: string;
  readonly #owner: BottomHalfList;
  readonly #callback: () => void;
  readonly oneshot: boolean;
  /** @internal To be run. */ pending = false;
  /** @internal In a list, be it to run or (cancelled since) to be passed over. */ queued = false;
  /** @internal */ idle = false;
  /** @internal */ deleted = false;
  /** @internal */ remoteSlot = -1;

  /** @internal Use AioContext.bottomHalf() or .oneshot(). */
  constructor(owner: BottomHalfList, callback: () => void, name: string, oneshot: boolean) {
    this.#owner = owner;
    this.#callback = callback;
    this.name = name;
    this.oneshot = oneshot;
  }

  /** Runs the callback once in the next turn; a no-op while it is pending already. */
  schedule(): void {
    if (this.pending && !this.idle) return;
    this.#assertAlive();
    this.idle = false;
    this.#owner.enqueue(this);
  }

  /** The same, without hurry: does not count as progress, runs within 10 ms. */
  scheduleIdle(): void {
    if (this.pending) return;
    this.#assertAlive();
    this.idle = true;
    this.#owner.enqueue(this);
  }

  // Not assert(): its message would be put together on every call.
  #assertAlive(): void {
    if (this.deleted) throw new Bug(`bottom half '${this.name}' was scheduled after it was deleted`);
  }

  /** It does not run unless scheduled again. */
  cancel(): void {
    this.pending = false;
    this.idle = false;
  }

  /** It never runs again; legal from its own callback. */
  delete(): void {
    if (this.deleted) return;
    this.deleted = true;
    this.pending = false;
    this.#owner.forget(this);
  }

  /** What another thread needs to schedule this: pass it through postMessage, then `RemoteBottomHalf`. */
  remote(): RemoteBottomHalfHandle {
    return this.#owner.expose(this);
  }

  /** @internal */
  run(): void {
    this.#callback();
  }
}

/** Survives structured clone; meaningless without the context's own remote handle. */
export interface RemoteBottomHalfHandle {
  readonly slot: number;
  /** Tells the bottom half from others that had, or will have, the same slot. */
  readonly owner: number;
}

/** The home side: all bottom halves of one context. */
export class BottomHalfList {
  readonly #shared: Int32Array;
  readonly #onWork: () => void;
  readonly #alive = new Set<BottomHalf>();
  readonly #slots: (BottomHalf | undefined)[] = [];
  #pending = new Fifo<BottomHalf>();
  #ready = new Fifo<BottomHalf>();
  #hurried = false;
  #owners = 0;

  constructor(shared: Int32Array, onWork: () => void) {
    this.#shared = shared;
    this.#onWork = onWork;
  }

  create(callback: () => void, name: string, oneshot: boolean): BottomHalf {
    const bh = new BottomHalf(this, callback, name, oneshot);
    this.#alive.add(bh);
    return bh;
  }

  /** @internal */
  enqueue(bh: BottomHalf): void {
    bh.pending = true;
    if (!bh.idle) this.#hurried = true;
    if (!bh.queued) {
      bh.queued = true;
      this.#pending.push(bh);
    }
    this.#onWork();
  }

  /** @internal */
  forget(bh: BottomHalf): void {
    this.#alive.delete(bh);
    if (bh.remoteSlot < 0) return;
    this.#slots[bh.remoteSlot] = undefined;
    Atomics.store(this.#shared, SharedWord.BH_OWNERS + bh.remoteSlot, 0);
  }

  /** @internal */
  expose(bh: BottomHalf): RemoteBottomHalfHandle {
    assert(!bh.deleted, `bottom half '${bh.name}' is deleted`);
    if (bh.remoteSlot < 0) {
      let slot = this.#slots.indexOf(undefined);
      if (slot < 0) slot = this.#slots.length;
      if (slot >= REMOTE_BH_SLOTS) {
        throw new BlockError(Errno.ENOSPC, `More than ${REMOTE_BH_SLOTS} bottom halves are shared with other threads`);
      }
      // A bit left over from the slot's last owner must not run the new one.
      Atomics.and(this.#shared, SharedWord.BH_BITS + (slot >> 5), ~(1 << (slot & 31)));
      Atomics.and(this.#shared, SharedWord.BH_DELETE_BITS + (slot >> 5), ~(1 << (slot & 31)));
      Atomics.and(this.#shared, SharedWord.BH_CANCEL_BITS + (slot >> 5), ~(1 << (slot & 31)));
      this.#slots[slot] = bh;
      bh.remoteSlot = slot;
      this.#owners = (this.#owners + 1) & 0x7fffffff || 1;
      Atomics.store(this.#shared, SharedWord.BH_OWNERS + slot, this.#owners);
    }
    return { slot: bh.remoteSlot, owner: Atomics.load(this.#shared, SharedWord.BH_OWNERS + bh.remoteSlot) };
  }

  /** True when something is to run at once (idle ones are not). */
  get hurried(): boolean {
    return this.#hurried || this.#ready.length > 0;
  }

  get waiting(): number {
    return this.#pending.length;
  }

  /** Takes up what other threads have scheduled, cancelled or deleted. */
  #takeRemote(): void {
    const shared = this.#shared;
    if (Atomics.exchange(shared, SharedWord.REMOTE_PENDING, 0) === 0) return;
    const words = (this.#slots.length + 31) >> 5;
    for (let word = 0; word < words; word++) {
      let gone = Atomics.exchange(shared, SharedWord.BH_DELETE_BITS + word, 0);
      let stay = Atomics.exchange(shared, SharedWord.BH_CANCEL_BITS + word, 0) & ~gone;
      let bits = Atomics.exchange(shared, SharedWord.BH_BITS + word, 0) & ~gone;
      for (; gone !== 0; gone &= gone - 1) this.#slots[word * 32 + lowestBit(gone)]?.delete();
      for (; stay !== 0; stay &= stay - 1) this.#slots[word * 32 + lowestBit(stay)]?.cancel();
      for (; bits !== 0; bits &= bits - 1) this.#slots[word * 32 + lowestBit(bits)]?.schedule();
    }
  }

  /**
   * Runs the bottom halves that are pending now. Those that get scheduled meanwhile run in the next poll; a nested poll
   * runs what the outer one has not come to. Returns true on progress.
   */
  run(): boolean {
    this.#takeRemote();
    for (let bh = this.#pending.shift(); bh; bh = this.#pending.shift()) this.#ready.push(bh);
    this.#hurried = false;
    let progress = false;
    for (let bh = this.#ready.shift(); bh; bh = this.#ready.shift()) {
      bh.queued = false;
      if (!bh.pending) continue;
      if (!bh.idle) progress = true;
      bh.pending = false;
      bh.idle = false;
      if (bh.oneshot) bh.delete();
      bh.run();
    }
    return progress;
  }

  /** At the context's end: everything must have been deleted. */
  assertEmpty(): void {
    for (const bh of this.#alive) throw new Bug(`BH '${bh.name}' leaked`);
  }
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}
