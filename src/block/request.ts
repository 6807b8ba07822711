/**
 * A request of a user of a BlockBackend: one class, fixed fields, reused for ever. The request is itself the operation
 * that the last node's backend completes, so a read or write that stays on the fast path allocates nothing.
 */
import { AioOp } from '../aio/op.ts';
import { Iov } from '../base/memory.ts';
import type { BlockBackend } from './backend.ts';
import { Mapping } from './driver.ts';
import { leafDone } from './fast.ts';
import type { BlockNode } from './node.ts';
import { Tracked } from './tracked.ts';

export const RequestKind = { READ: 0, WRITE: 1, FLUSH: 2, DISCARD: 3, ZERO: 4, CACHE: 5 } as const;

/** Where a request is on its way. */
export const Phase = { IDLE: 0, QUEUED: 1, LEAF: 2, ENDING: 3, SLOW: 4 } as const;

/**
 * Set `kind`, `at`, `length`, `flags` and (reads and writes) fill `iov`, then `blk.submit(request)`. The object, its
 * iov and the memory in it belong to the block layer until `done`. Offsets and lengths in bytes; for reads and writes
 * `iov.length` must be `length`.
 */
export abstract class BlockRequest extends AioOp {
  kind: number = RequestKind.READ;
  at = 0;
  length = 0;
  /** RequestFlags. */
  flags = 0;
  /** Refilled by the user before each submit. */
  readonly iov = new Iov();
  /** @internal Null for that of a node on its child. */ blk: BlockBackend | null = null;
  /** @internal */ phase: number = Phase.IDLE;
  /** @internal When it was submitted; see AioContext.turnTicks. */ begunTicks = 0;
  /** @internal `flags` with what the BlockBackend adds. */ effective = 0;
  /** @internal One entry a level of the graph that the request is in flight on. */ readonly levels: Tracked[] = [];
  /** @internal */ depth = 0;
  /** @internal */ readonly mapping = new Mapping();
  /** @internal The leaf, where the request is on it, and how far it has come. */ leaf: BlockNode | null = null;
  /** @internal */ leafAt = 0;
  /** @internal */ progress = 0;
  /** @internal What is left of `iov` after a short result. */ rest: Iov | null = null;
  /** @internal What the coroutine path has to wait for first. */ pending: Promise<void> | null = null;

  /** `error`: 0 or a negative errno. Runs exactly once, in the home context, never inside submit(); may submit the same
   *  object again at once. */
  abstract done(error: number): void;

  /** @internal */
  complete(result: number): void {
    if (this.phase === Phase.LEAF) leafDone(this, result);
    else this.finish(result);
  }

  /** @internal */
  level(depth: number): Tracked {
    let tracked = this.levels[depth];
    if (tracked === undefined) {
      tracked = new Tracked();
      this.levels.push(tracked);
    }
    return tracked;
  }

  /** @internal The only way out. */
  finish(error: number): void {
    const { blk } = this;
    this.phase = Phase.IDLE;
    this.blk = null;
    blk?.requestEnded(this, error);
    this.done(error);
  }
}
