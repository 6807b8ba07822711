/** One request to the server: pooled, with fixed fields. It may be sent more than once, on one connection at a time. */
import type { AioOp } from '../../aio/op.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import { Command } from '../../proto/nbd/constants.ts';
import { fromNbdError } from '../../proto/nbd/errno.ts';
import type { StatusExtent } from '../../proto/nbd/reply.ts';
import { Coverage } from './coverage.ts';

export class NbdCommand {
  /** Ends with the result: bytes for reads and writes, 0, or a negative errno. */
  op: AioOp | null = null;
  /** Command.* and CommandFlag.* of the protocol. */
  type: number = Command.READ;
  flags = 0;
  at: Offset = 0;
  length: Bytes = 0;
  /** What a read fills and a write sends; the caller's until `op` ends. */
  iov: Iov | null = null;
  /** A coroutine looks at it after its end, and gives it back itself. */
  kept = false;
  /** The answer to BLOCK_STATUS. */
  extents: readonly StatusExtent[] | null = null;

  /** Its cookie on the connection it was sent on: place and serial number. */
  slot = -1;
  serial = 0;
  /** The kernel is done with its bytes: they are sent, or never will be. */
  sent = false;
  /** The answer is complete. */
  answered = false;
  /** How often its connection was lost under it. */
  repeats = 0;
  /** 0 or the first error of the answer, as a negative errno. */
  error = 0;
  /** Chunks of the answer that were no data, and bytes of data. */
  chunks = 0;
  got: Bytes = 0;
  #coverage: Coverage | null = null;

  /** To be sent on some connection, maybe again: nothing of an earlier answer counts. */
  begin(slot: number, serial: number): void {
    this.slot = slot;
    this.serial = serial;
    this.sent = false;
    this.answered = false;
    this.error = 0;
    this.chunks = 0;
    this.got = 0;
    this.#coverage = null;
    this.extents = null;
  }

  /** Data for `[from, from + length)` of a read is about to come. False when that cannot be: outside, or again. */
  expects(from: Offset, length: Bytes): boolean {
    if (from < 0 || length <= 0 || from + length > this.length) return false;
    if (this.got === 0 && length === this.length) {
      this.got = length;
      return true;
    }
    if (this.#coverage === null) {
      // All of it has come in one piece.
      if (this.got > 0) return false;
      this.#coverage = new Coverage();
    }
    const added = this.#coverage.add(from, from + length);
    this.got = this.#coverage.bytes;
    return added;
  }

  /** The first error counts. An error with the number 0 is one all the same. */
  fail(nbdError: number): void {
    if (this.error === 0) this.error = -fromNbdError(nbdError === 0 ? 5 : nbdError);
  }

  /** True when the answer may end here: nothing that was asked for is missing. */
  get complete(): boolean {
    if (this.error !== 0) return true;
    if (this.type === Command.READ) return this.got === this.length;
    return this.type !== Command.BLOCK_STATUS || this.extents !== null;
  }

  /** What `op` ends with when the answer is good. */
  get result(): number {
    if (this.error !== 0) return this.error;
    return this.type === Command.READ || this.type === Command.WRITE ? this.length : 0;
  }
}
