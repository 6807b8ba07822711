/**
 * The memory that the back-end sees: rings, a slot for each request in flight, and the data on its way. One memfd for
 * each connection, which cannot shrink: a back-end that was left may go on writing to it, and reaches nothing of the
 * next one's.
 */
import { Buddy } from '../../base/buddy.ts';
import { BlockError, errnoText } from '../../base/errors.ts';
import { FreeList } from '../../base/free-list.ts';
import { alignUp, type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import { close, ftruncate } from '../../native/file.ts';
import { addSeals, memfdCreate, Seal } from '../../native/mmap.ts';
import { Window } from '../../native/window.ts';

/** Requests in flight. */
export const SLOTS = 256;
/** Header, segment and status of a request, and its table of descriptors. */
export const SLOT_BYTES: Bytes = 512;
export const HEADER_AT = 0;
export const SEGMENT_AT = 16;
export const STATUS_AT = 32;
export const TABLE_AT = 64;
/** Data of all requests in flight. */
const DATA_BYTES: Bytes = 16 * MiB;
const DATA_UNIT: Bytes = 4 * KiB;
/** A slot keeps a block up to this size when its request has ended: together 4 MiB. */
const KEPT_BYTES: Bytes = 16 * KiB;
const PAGE: Bytes = 4 * KiB;

export class SharedMemory {
  readonly window: Window;
  readonly fd: number;
  readonly bytes: Bytes;
  readonly ringBytes: Bytes;
  readonly #slotsAt: Offset;
  readonly #dataAt: Offset;
  readonly #free = new FreeList<number>();
  readonly #buddy = new Buddy(DATA_BYTES, DATA_UNIT);
  /** By slot: its block of data, in bytes from the start of all data, -1 for none. */
  readonly #blocks = new Int32Array(SLOTS).fill(-1);
  readonly #blockBytes = new Int32Array(SLOTS);
  /** By slot: the bytes that were used last, so that a view need not be made for each request. */
  readonly #views: (Uint8Array | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #busy = new Uint8Array(SLOTS);

  /** `ringBytes` of it, at most, for each of `queues`. Throws BlockError where there is no room. */
  constructor(queues: number, ringBytes: Bytes) {
    this.ringBytes = alignUp(ringBytes, PAGE);
    this.#slotsAt = queues * this.ringBytes;
    this.#dataAt = this.#slotsAt + SLOTS * SLOT_BYTES;
    this.bytes = this.#dataAt + DATA_BYTES;
    const refuse = (errno: number): never => {
      throw new BlockError(errno, `Could not share memory with the back-end: ${errnoText(errno)}`);
    };
    this.fd = memfdCreate('blockplane-virtio-blk');
    if (this.fd < 0) refuse(this.fd);
    const grown = ftruncate(this.fd, this.bytes);
    const sealed = grown < 0 ? grown : addSeals(this.fd, Seal.SHRINK | Seal.GROW);
    const window = sealed < 0 ? sealed : Window.of(this.fd, 0, this.bytes);
    if (typeof window === 'number') {
      close(this.fd);
      throw refuse(window);
    }
    this.window = window;
    for (let slot = SLOTS - 1; slot >= 0; slot--) this.#free.give(slot);
  }

  /** What the back-end takes for the guest's address of `at`, and for the front-end's. */
  addressOf(at: Offset): number {
    return this.window.address + at;
  }

  /** A free slot with room for `length` bytes of data; -1 when there is none now. */
  take(length: Bytes): number {
    const slot = this.#free.take();
    if (slot === undefined) return -1;
    if (length > this.#blockBytes[slot]! && !this.#grow(slot, length)) {
      this.#free.give(slot);
      return -1;
    }
    this.#busy[slot] = 1;
    return slot;
  }

  give(slot: number): void {
    this.#busy[slot] = 0;
    this.#free.give(slot);
    if (this.#blockBytes[slot]! > KEPT_BYTES) this.#drop(slot);
  }

  #grow(slot: number, length: Bytes): boolean {
    this.#drop(slot);
    let at = this.#buddy.allocate(length);
    if (at < 0) {
      // What those keep that have nothing to do.
      for (let other = 0; other < SLOTS; other++) if (this.#busy[other] === 0) this.#drop(other);
      at = this.#buddy.allocate(length);
    }
    if (at < 0) return false;
    this.#blocks[slot] = at;
    this.#blockBytes[slot] = length;
    return true;
  }

  #drop(slot: number): void {
    if (this.#blockBytes[slot] === 0) return;
    this.#buddy.free(this.#blocks[slot]!);
    this.#blocks[slot] = -1;
    this.#blockBytes[slot] = 0;
    this.#views[slot] = undefined;
  }

  slotAt(slot: number): Offset {
    return this.#slotsAt + slot * SLOT_BYTES;
  }

  dataAt(slot: number): Offset {
    return this.#dataAt + this.#blocks[slot]!;
  }

  /** The first `length` bytes of a slot's data. */
  data(slot: number, length: Bytes): Uint8Array {
    const last = this.#views[slot];
    if (last !== undefined && last.length === length) return last;
    const at = this.dataAt(slot);
    const view = this.window.bytes.subarray(at, at + length);
    this.#views[slot] = view;
    return view;
  }

  /** Nobody may use it afterwards. */
  release(): void {
    close(this.fd);
    this.window.release();
  }
}
