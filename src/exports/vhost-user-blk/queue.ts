/**
 * One virtqueue: takes chains, makes requests of them, shows what is done. All in turns of its context's loop: the
 * queue is a poller, so it sees new chains without being told while the loop is awake, and asks for a notification only
 * when the loop goes to sleep. What ended in a turn is shown at once and costs one interrupt at most.
 */

import type { Poller } from '../../aio/backend.ts';
import { FdSignal, FdWatch } from '../../aio/fd-watch.ts';
import { Gate } from '../../aio/op.ts';
import type { Bytes } from '../../base/units.ts';
import { close } from '../../native/file.ts';
import { VRING_LOG } from '../../proto/vhost-user/constants.ts';
import type { VringAddress } from '../../proto/vhost-user/message.ts';
import { RingFeature } from '../../proto/virtio-blk/constants.ts';
import { EVENT_BYTES } from '../../proto/virtio-blk/packed-ring.ts';
import { availBytes, DESCRIPTOR_BYTES, usedBytes } from '../../proto/virtio-blk/split-ring.ts';
import { Chain, ChainResult, MAX_CHAIN_BYTES } from './chain.ts';
import type { BlkDevice } from './device.ts';
import type { InflightQueue } from './inflight.ts';
import { PackedInflight } from './packed-inflight.ts';
import { PackedRing } from './packed-ring.ts';
import { BlkRequest, type RequestOwner } from './request.ts';
import { type RingSpans, SplitRing } from './split-ring.ts';

/** Chains that are taken in a turn: half of those that wait, and no more than this. So the guest goes on with the first
 *  while the kernel works on the next. A system call for each batch costs 0.3 µs, and copying 4 KiB 1.7 µs. */
const BATCH_MAX = 8;
/** A turn ends when its chains have had so many runs (some 0.2 ms): the loop has others to look after. */
const RUNS_A_TURN = 4096;
/** What transfers of one queue may hold besides the guest's memory: two of the largest. */
const ASIDE_BYTES = 2 * MAX_CHAIN_BYTES;

type Ring = SplitRing | PackedRing;

export class BlkQueue implements Poller, RequestOwner {
  readonly index: number;
  readonly #device: BlkDevice;
  readonly #chain: Chain;
  /** Set by the front-end before the ring starts. */
  size = 0;
  base = 0;
  addresses: VringAddress | undefined;
  #enabled = false;
  #ring: Ring | null = null;
  #inflight: InflightQueue | PackedInflight | null = null;
  #requests: (BlkRequest | undefined)[] = [];
  #kick: FdWatch | null = null;
  #call: FdSignal | null = null;
  #err: FdSignal | null = null;
  #busy = 0;
  #aside: Bytes = 0;
  /** No more chains are taken: while it stops, or for good after a broken chain. */
  #paused = false;
  #broken = false;
  /** A chain waits for memory that others hold. */
  #stalled = false;
  /** What a back-end before us had taken: heads, or first entries of chains of a packed ring. */
  #replay: number[] = [];
  #idle: Gate | undefined;

  constructor(device: BlkDevice, index: number) {
    this.#device = device;
    this.index = index;
    this.#chain = new Chain(device.guest);
  }

  get started(): boolean {
    return this.#ring !== null;
  }

  get broken(): boolean {
    return this.#broken;
  }

  set enabled(value: boolean) {
    this.#enabled = value;
  }

  /** Takes over descriptors; null for none. */
  setKick(fd: number | null): void {
    this.#kick?.close();
    // That something has come is all it says: the loop is awake now, and polls.
    this.#kick = fd === null ? null : new FdWatch(this.#device.backend, fd, close, () => undefined);
  }

  setCall(fd: number | null): void {
    this.#call?.close();
    this.#call = fd === null ? null : new FdSignal(this.#device.backend, fd, close);
    // What was shown without anybody to be told of it.
    if (this.#ring) this.#call?.signal();
  }

  setErr(fd: number | null): void {
    this.#err?.close();
    this.#err = fd === null ? null : new FdSignal(this.#device.backend, fd, close);
  }

  /** The parts of the ring; a text that says what is wrong with them otherwise. */
  spans(): RingSpans | string {
    const { addresses, size } = this;
    if (size === 0) return 'SET_VRING_NUM is missing';
    if (!addresses) return 'SET_VRING_ADDR is missing';
    const { guest, packed } = this.#device;
    const descriptors = guest.spanOfUser(addresses.descriptors, size * DESCRIPTOR_BYTES);
    const avail = guest.spanOfUser(addresses.available, packed ? EVENT_BYTES : availBytes(size));
    const used = guest.spanOfUser(addresses.used, packed ? EVENT_BYTES : usedBytes(size));
    if (!descriptors || !avail || !used) return 'the ring is not in the memory of the guest';
    const spans = { descriptors, avail, used };
    return (packed ? PackedRing : SplitRing).aligned(spans) ? spans : 'the parts of the ring are not aligned';
  }

  /** Starts the ring, or places a started one anew. A text when that cannot be done. */
  start(): string | undefined {
    const spans = this.spans();
    if (typeof spans === 'string') return spans;
    const running = this.#ring;
    const device = this.#device;
    const eventIdx = (device.features & RingFeature.EVENT_IDX) !== 0;
    if (running && running.staged > 0) this.#publish(running);
    const base = running ? running.base : this.base;
    const Ring = device.packed ? PackedRing : SplitRing;
    const ring = new Ring(spans, this.size, base, eventIdx, device.guest.guarded);
    this.#ring = ring;
    if (running) return undefined;
    this.#broken = false;
    this.#paused = false;
    this.#requests = new Array(this.size).fill(undefined);
    const inflight = device.inflightOf(this.index, this.size);
    this.#inflight = inflight;
    // Both are of the layout that the device has.
    if (inflight) this.#replay = inflight.recover(ring as SplitRing & PackedRing);
    device.context.pollers.push(this);
    return undefined;
  }

  /** No chain is taken from here on; resolves when those that were have ended and are shown. */
  async pause(): Promise<void> {
    this.#paused = true;
    for (;;) {
      // They count as taken.
      if (this.#ring) this.#beginReplay(this.#ring);
      if (this.#busy === 0) break;
      this.#idle ??= new Gate();
      await this.#idle.promise;
    }
    if (this.#ring && this.#ring.staged > 0) this.#publish(this.#ring);
  }

  resume(): void {
    this.#paused = false;
  }

  /** Stops the ring once it is paused; where the next chain would have been. */
  stop(): number {
    const ring = this.#ring;
    if (!ring) return this.base;
    const { pollers } = this.#device.context;
    pollers.splice(pollers.indexOf(this), 1);
    this.#ring = null;
    this.#inflight = null;
    this.#requests = [];
    this.#replay = [];
    this.base = ring.base;
    return this.base;
  }

  /** As at the beginning of a session; the ring must have stopped. */
  reset(): void {
    this.setKick(null);
    this.setCall(null);
    this.setErr(null);
    this.size = 0;
    this.base = 0;
    this.addresses = undefined;
    this.#enabled = false;
    this.#broken = false;
  }

  // Poller.

  poll(): boolean {
    const ring = this.#ring!;
    let progress = false;
    if (ring.staged > 0) {
      this.#publish(ring);
      progress = true;
    }
    if (!this.#takes) return progress;
    if (this.#replay.length > 0) return this.#beginReplay(ring) || progress;
    const waiting = ring.waiting();
    if (waiting === 0) return progress;
    if (waiting < 0) {
      this.#fail(ring.lost ? 'its memory has gone' : 'more chains are available than there can be');
      return true;
    }
    ring.begin();
    let runs = 0;
    for (let left = waiting > BATCH_MAX ? BATCH_MAX : (waiting + 1) >> 1; left > 0 && runs < RUNS_A_TURN; left--) {
      const { head } = ring;
      if (!this.#begin(ring, head)) break;
      ring.take(this.#chain.slots);
      runs += this.#chain.readable.count + this.#chain.writable.count;
    }
    return true;
  }

  ready(): boolean {
    return this.#takes && this.#ring!.waiting() !== 0;
  }

  arm(): boolean {
    return this.#takes && this.#ring!.arm();
  }

  get #takes(): boolean {
    return this.#enabled && !this.#paused && !this.#broken && !this.#stalled && this.#device.blk.quiesce === 0;
  }

  /** Begins the chain at `head`, or what `again` says; false when it has to wait, or the queue is broken. */
  #begin(ring: Ring, head: number, again = false): boolean {
    const chain = this.#chain;
    const saved = again && ring.packed;
    const result = this.#walk(ring, head, saved);
    if (result === ChainResult.BROKEN) return this.#fail(`the chain at ${head} is broken`);
    const { id } = chain;
    if (id >= ring.size) return this.#fail(`the chain at ${head} has the id ${id}`);
    this.#requests[id] ??= new BlkRequest(this.#device, this, id);
    const request = this.#requests[id];
    if (request.busy) return this.#fail(`the chain at ${head} is in use`);
    request.slots = chain.slots;
    if (this.#device.guest.guarded && !this.#hasRoom(chain.readable.length + chain.writable.length)) return false;
    request.busy = true;
    this.#busy++;
    if (this.#inflight) request.entry = saved ? head : this.#mark(this.#inflight, ring, chain);
    request.begin(chain, result === ChainResult.GOOD);
    if (request.busy) {
      request.heldBytes = request.asideBytes;
      this.#aside += request.heldBytes;
    }
    return true;
  }

  #walk(ring: Ring, head: number, saved: boolean): number {
    const chain = this.#chain;
    const indirect = (this.#device.features & RingFeature.INDIRECT_DESC) !== 0;
    if (!ring.packed) return chain.walk(ring, head, indirect);
    if (saved) return chain.walkSaved(this.#inflight as PackedInflight, head, indirect);
    return chain.walkPacked(ring, indirect);
  }

  #mark(inflight: InflightQueue | PackedInflight, ring: Ring, { id, slots }: Chain): number {
    return inflight instanceof PackedInflight ? inflight.begin(ring as PackedRing, id, slots) : inflight.begin(id);
  }

  /** Begins what a back-end before us had begun; true when that was anything. */
  #beginReplay(ring: Ring): boolean {
    if (this.#replay.length === 0) return false;
    let begun = false;
    ring.begin();
    while (this.#replay.length > 0 && !this.#broken && this.#begin(ring, this.#replay[0]!, true)) {
      this.#replay.shift();
      begun = true;
    }
    return begun || this.#broken;
  }

  #hasRoom(bytes: Bytes): boolean {
    this.#stalled = this.#aside + bytes > ASIDE_BYTES;
    return !this.#stalled;
  }

  requestDone(request: BlkRequest): void {
    request.busy = false;
    this.#busy--;
    this.#aside -= request.heldBytes;
    request.heldBytes = 0;
    this.#stalled = false;
    this.#inflight?.stage(request.entry);
    this.#ring!.stage(request.id, request.usedBytes, request.slots);
    if (this.#busy === 0 && this.#idle) {
      this.#idle.open();
      this.#idle = undefined;
    }
  }

  #publish(ring: Ring): void {
    const count = ring.staged;
    const inflight = this.#inflight;
    if (inflight instanceof PackedInflight) inflight.showing();
    const interrupt = ring.publish();
    inflight?.shown(count, ring.usedIndex);
    const { log } = this.#device;
    if (log !== null && this.addresses && (this.addresses.flags & VRING_LOG) !== 0) {
      log.mark(this.addresses.log, ring.packed ? ring.size * DESCRIPTOR_BYTES : usedBytes(ring.size));
    }
    if (interrupt) this.#call?.signal();
  }

  /** The queue is of no more use until the driver resets it. False, for its callers. */
  #fail(why: string): false {
    this.#broken = true;
    this.#err?.signal();
    this.#device.onBroken(this.index, why);
    return false;
  }
}
