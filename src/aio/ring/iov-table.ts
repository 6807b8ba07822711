/**
 * Native iovec arrays and message headers for operations that take a list of runs. The kernel copies them when an entry
 * is submitted (IORING_FEAT_SUBMIT_STABLE), so the table is a stack that empties with every submission.
 */
import type { Iov, Memory } from '../../base/memory.ts';

/** iovecs that can wait for one submission: 64 sends of IOV_MAX runs. */
const CAPACITY = 65536;
const IOVEC_BYTES = 16;
const MSGHDR_BYTES = 64;
const TWO_32 = 0x1_0000_0000;
/** The most runs one operation may have (uio.h). */
export const IOV_MAX = 1024;

export interface IovTableOwner {
  memory(bytes: Uint8Array): Memory;
  /** Makes room for one more submission entry; false when the kernel takes none. */
  room(): boolean;
  flush(): void;
}

export class IovTable {
  readonly #owner: IovTableOwner;
  readonly #words: Uint32Array;
  /** What the offsets that this gives out are in. */
  readonly memory: Memory;
  #top = 0;

  constructor(owner: IovTableOwner) {
    this.#owner = owner;
    const bytes = new Uint8Array(new SharedArrayBuffer(CAPACITY * IOVEC_BYTES));
    this.#words = new Uint32Array(bytes.buffer);
    this.memory = owner.memory(bytes);
  }

  /** Told by the backend after each submission. */
  submitted(all: boolean): void {
    if (all) this.#top = 0;
  }

  /** Where an iovec array of `iov`'s runs is, valid until the next submission; -1 when the table is full. */
  put(iov: Iov): number {
    // First: making room for the entry later on would submit, and with that empty the table under it.
    if (!this.#owner.room()) return -1;
    const at = this.#take(iov.count * IOVEC_BYTES);
    if (at < 0) return -1;
    const words = this.#words;
    for (let i = 0, word = at / 4; i < iov.count; i++, word += 4) {
      const address = iov.memories[i]!.address + iov.offsets[i]!;
      const high = Math.floor(address / TWO_32);
      words[word] = address - high * TWO_32;
      words[word + 1] = high;
      words[word + 2] = iov.lengths[i]!;
      words[word + 3] = 0;
    }
    return at;
  }

  /** Where a msghdr that sends `iov` is; -1 when the table is full. */
  putMessage(iov: Iov): number {
    if (!this.#owner.room()) return -1;
    this.reserve(MSGHDR_BYTES + iov.count * IOVEC_BYTES);
    const header = this.#take(MSGHDR_BYTES);
    const table = this.put(iov);
    if (header < 0 || table < 0) return -1;
    const vector = this.memory.address + table;
    const words = this.#words;
    const word = header / 4;
    words.fill(0, word, word + MSGHDR_BYTES / 4);
    const high = Math.floor(vector / TWO_32);
    words[word + 4] = vector - high * TWO_32;
    words[word + 5] = high;
    words[word + 6] = iov.count;
    return header;
  }

  /** Submits what is prepared when `bytes` would not fit. */
  reserve(bytes: number): void {
    if (this.#top + bytes > CAPACITY * IOVEC_BYTES) this.#owner.flush();
  }

  #take(bytes: number): number {
    this.reserve(bytes);
    if (this.#top + bytes > CAPACITY * IOVEC_BYTES) return -1;
    const at = this.#top;
    this.#top += bytes;
    return at;
  }
}
