/** One request in callback form: made once, used for ever. */
import type { BlockError } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { RequestKind } from '../block/request.ts';
import type { BlockStatus } from '../block/status.ts';
import { ChannelKind, type SharedWords } from './layout.ts';

/** What a {@link BlkOp} can ask for. */
export const BlkKind = {
  READ: RequestKind.READ,
  WRITE: RequestKind.WRITE,
  FLUSH: RequestKind.FLUSH,
  DISCARD: RequestKind.DISCARD,
  ZERO: RequestKind.ZERO,
  STATUS: ChannelKind.STATUS,
} as const;

/**
 * Set `kind`, `at`, `length` and `flags`, for reads and writes fill `iov` with parts of regions of the same handle (at
 * most 16; `length` is then theirs), and give it to `handle.submit`. The object and the memory belong to the handle
 * until `done`.
 */
export abstract class BlkOp {
  /** A BlkKind. */
  kind: number = BlkKind.READ;
  at: Offset = 0;
  length: Bytes = 0;
  /** RequestFlags. */
  flags = 0;
  readonly iov = new Iov();
  /** Where the answer about block status goes. */
  status: BlockStatus | null = null;
  /** @internal Reads what else home has answered, before `done`: `at` is where the record begins. */
  answered: ((words: SharedWords, at: number) => void) | null = null;
  /** What went wrong in full, where home could say more than an errno. Valid in `done`. */
  failure: BlockError | null = null;
  /** @internal The slot it is in; -1 at rest, WAITING in line. */ slot = -1;

  /** `error`: 0 or a negative errno. Runs once, in the handle's thread, never inside submit(); may submit the same
   *  object again at once. Must not throw. */
  abstract done(error: number): void;
}

/** {@link BlkOp.slot} of one that waits for a free slot. */
export const WAITING = -2;
