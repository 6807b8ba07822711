/** The log of guest pages that we have written to, for live migration: one bit a page, shared with the front-end. */
import type { Iov, Memory } from '../../base/memory.ts';
import type { Bytes } from '../../base/units.ts';
import { LOG_PAGE_BYTES } from '../../proto/vhost-user/constants.ts';
import { guestAddressOf } from './guest-memory.ts';

export class DirtyLog {
  readonly #bytes: Uint8Array;

  /** `length` bytes of `memory` from `at`. */
  constructor(memory: Memory, at: number, length: Bytes) {
    this.#bytes = memory.bytes.subarray(at, at + length);
  }

  /** What was written has to be there before. Pages beyond the end of the log are left out. */
  mark(guest: number, length: Bytes): void {
    const last = Math.min(Math.floor((guest + length - 1) / LOG_PAGE_BYTES), this.#bytes.length * 8 - 1);
    for (let page = Math.floor(guest / LOG_PAGE_BYTES); page <= last; page++) {
      Atomics.or(this.#bytes, Math.floor(page / 8), 1 << (page % 8));
    }
  }

  /** Every run of guest memory in `iov`. */
  markRuns(iov: Iov): void {
    for (let i = 0; i < iov.count; i++) {
      this.mark(guestAddressOf(iov.memories[i]!, iov.offsets[i]!), iov.lengths[i]!);
    }
  }
}
