/**
 * The client's side of one channel: slots, the two rings, the line of those that wait for a slot, and waking.
 *
 * Invariants: an op is in one slot, or in line, or at rest; a slot is free, or holds one op; nothing is called back
 * inside submit(); once `end` is set nothing is in flight and nothing begins. A plain thread sleeps in
 * Atomics.waitAsync, which does not keep it alive: `keep` does, while something is in flight.
 */
import type { BottomHalf } from '../aio/bottom-half.ts';
import type { AioContext } from '../aio/context.ts';
import { markResumed } from '../aio/op.ts';
import { RemoteContext } from '../aio/remote.ts';
import { Bug } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import { FreeList } from '../base/free-list.ts';
import { RequestKind } from '../block/request.ts';
import type { BlockStatus } from '../block/status.ts';
import {
  type BlkIdentity,
  DiskWord,
  Field,
  RUNS_MAX,
  readHalves,
  recordAt,
  type SharedWords,
  SLOTS,
  SYNC_SLOT,
  SyncState,
  Word,
  writeHalves,
} from './layout.ts';
import { type BlkOp, WAITING } from './op.ts';
import { SharedRegion } from './region.ts';
import type { ServerChannel } from './server-channel.ts';

/** How often a synchronous waiter looks whether home still lives. */
const LOOK_MS = 100;

export interface ClientOptions {
  readonly identity: BlkIdentity;
  readonly words: SharedWords;
  /** The loop of this thread, if it has one. */
  readonly context: AioContext | undefined;
  /** Home is this thread: its side of the channel. */
  readonly local: ServerChannel | undefined;
  /** Keep this thread alive, or do not. */
  readonly keep: (alive: boolean) => void;
  /** Takes in what home has posted: it comes back through `failures` and `fail`. */
  readonly readPort: () => void;
}

/** All methods: the thread that attached. */
export class ChannelClient {
  readonly words: SharedWords;
  /** Why nothing is served any more. */
  end: BlockError | undefined;
  /** Woken by this in a thread with a context. */
  readonly bh: BottomHalf | undefined;
  readonly #disk: SharedWords;
  #home: RemoteContext;
  #identity: BlkIdentity;
  /** HOME_EPOCH since when home is there. */
  #epoch = 0;
  readonly #local: ServerChannel | undefined;
  /** By slot: what home has posted of its failure. */
  readonly failures = new Map<number, BlockError>();
  readonly #readPort: () => void;
  readonly #keep: (alive: boolean) => void;
  readonly #ops: (BlkOp | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #free = new FreeList<number>();
  readonly #line = new Fifo<BlkOp>();
  #inFlight = 0;
  #submitted = 0;
  #reaped = 0;
  #reaping = false;
  #failLater: BlockError | undefined;
  #unpublished = false;
  #armed = false;
  #onIdle: (() => void) | undefined;

  constructor({ identity, words, context, local, keep, readPort }: ClientOptions) {
    this.words = words;
    this.#identity = identity;
    this.#disk = identity.disk;
    this.#home = new RemoteContext(identity.home);
    this.#local = local;
    this.#keep = keep;
    this.#readPort = readPort;
    for (let slot = SYNC_SLOT - 1; slot >= 0; slot--) this.#free.give(slot);
    if (!context || local) return;
    this.bh = context.bottomHalf(() => this.reap(), `handle of ${identity.name}`);
    words[Word.CLIENT_HAS_LOOP] = 1;
    Atomics.store(words, Word.CLIENT_ASLEEP, 1);
  }

  /** Where home is. */
  get home(): BlkIdentity {
    this.#follow();
    return this.#identity;
  }

  /** Home has said where it is from now on. */
  movedTo(identity: BlkIdentity, epoch: number): void {
    this.#identity = identity;
    this.#home = new RemoteContext(identity.home);
    this.#epoch = epoch;
  }

  /** Reads where home has gone to, if it has. */
  #follow(): void {
    if (Atomics.load(this.words, Word.HOME_EPOCH) === this.#epoch) return;
    const reaping = this.#reaping;
    // Nobody is called back in here, whatever else is on the port: this may be inside submit().
    this.#reaping = true;
    this.#readPort();
    this.#reaping = reaping;
    if (reaping || !this.#failLater) return;
    markResumed();
    queueMicrotask(() => this.reap());
  }

  wakeHome(): void {
    // After the request was put in: see CHANNELS.md.
    this.#follow();
    this.#home.schedule(this.#identity.takeUp);
  }

  /** Requests in flight and in line. */
  get pending(): number {
    return this.#inFlight + this.#line.length;
  }

  /** Begins `op`, or puts it in line. Throws for what can only be a mistake: see BlkHandle.submit. */
  submit(op: BlkOp): void {
    this.#check(op);
    lend(op, 1);
    const slot = this.#line.length === 0 ? this.#free.take() : undefined;
    if (slot === undefined) {
      op.slot = WAITING;
      this.#line.push(op);
      return;
    }
    this.#start(op, slot);
    if (this.#reaping) return;
    this.#publish();
    this.#rest();
  }

  #check(op: BlkOp): void {
    if (this.end) throw this.end;
    if (op.slot !== -1) throw new BlockError(Errno.EALREADY, 'Could not submit a request: it is in flight');
    const { iov } = op;
    if (op.kind <= RequestKind.WRITE) {
      if (iov.count > RUNS_MAX) {
        throw new BlockError(Errno.EINVAL, `Could not submit a request: ${iov.count} pieces, more than ${RUNS_MAX}`);
      }
      for (let i = 0; i < iov.count; i++) this.#checkRun(iov.memories[i], iov.offsets[i]!, iov.lengths[i]!);
      op.length = iov.length;
    }
    if (!Number.isSafeInteger(op.at) || op.at < 0 || !Number.isSafeInteger(op.length) || op.length < 0) {
      throw new BlockError(Errno.EINVAL, `Could not submit a request: ${op.length} bytes at ${op.at}`);
    }
  }

  #checkRun(region: unknown, at: number, length: number): void {
    if (!(region instanceof SharedRegion) || region.owner !== this || region.released) {
      throw new BlockError(Errno.EFAULT, 'Could not submit a request: its memory is not registered with this handle');
    }
    if (!(at >= 0 && length >= 0 && at + length <= region.bytes.length)) {
      throw new BlockError(Errno.EFAULT, `Could not submit a request: ${length} bytes at ${at} are not in the region`);
    }
  }

  #start(op: BlkOp, slot: number): void {
    op.slot = slot;
    this.#ops[slot] = op;
    if (this.#inFlight++ === 0) this.#keep(true);
    this.#record(op, slot);
  }

  /** Writes the record and puts its slot into the ring; {@link #publish} shows it. */
  #record(op: BlkOp, slot: number): void {
    const { words } = this;
    const { iov } = op;
    const at = recordAt(slot);
    op.failure = null;
    words[at + Field.KIND] = op.kind;
    words[at + Field.FLAGS] = op.flags;
    words[at + Field.CANCEL] = 0;
    writeHalves(words, at + Field.AT_LOW, op.at);
    writeHalves(words, at + Field.LENGTH_LOW, op.length);
    const count = op.kind <= RequestKind.WRITE ? iov.count : 0;
    words[at + Field.RUN_COUNT] = count;
    for (let i = 0, run = at + Field.RUNS; i < count; i++, run += 3) {
      words[run] = (iov.memories[i] as SharedRegion).id;
      words[run + 1] = iov.offsets[i]!;
      words[run + 2] = iov.lengths[i]!;
    }
    words[Word.SUBMIT_RING + (this.#submitted & (SLOTS - 1))] = slot;
    this.#submitted = (this.#submitted + 1) | 0;
    this.#unpublished = true;
  }

  #publish(): void {
    if (!this.#unpublished) return;
    this.#unpublished = false;
    const { words } = this;
    Atomics.store(words, Word.SUBMITTED, this.#submitted);
    if (this.#local) this.#local.takeUp();
    else if (Atomics.exchange(words, Word.HOME_IDLE, 0) === 0) words[Word.HOME_WAKES_SAVED]!++;
    else {
      words[Word.HOME_WAKES]!++;
      this.wakeHome();
    }
  }

  /** Takes in what has ended: calls back, begins what waits in line. Called by the loop; a thread that has none and
   *  does not want to return to its own calls it again and again. Answers how many have ended. */
  reap(): number {
    if (this.#reaping) return 0;
    const { words } = this;
    const before = this.#reaped;
    this.#reaping = true;
    try {
      do {
        const end = Atomics.load(words, Word.COMPLETED);
        while (this.#reaped !== end && !this.end) {
          const slot = words[Word.COMPLETE_RING + (this.#reaped & (SLOTS - 1))]! & (SLOTS - 1);
          this.#reaped = (this.#reaped + 1) | 0;
          this.#finish(slot, words[recordAt(slot) + Field.RESULT]!);
        }
        Atomics.store(words, Word.CLIENT_ASLEEP, 1);
      } while (!this.end && Atomics.load(words, Word.COMPLETED) !== this.#reaped);
    } finally {
      this.#reaping = false;
    }
    const failed = this.#failLater;
    this.#failLater = undefined;
    if (failed) this.fail(failed);
    this.#publish();
    this.#rest();
    return (this.#reaped - before) | 0;
  }

  #finish(slot: number, result: number): void {
    const op = this.#ops[slot];
    if (!op) throw new Bug(`slot ${slot} of a channel ended and was not in flight`);
    this.#ops[slot] = undefined;
    op.slot = -1;
    lend(op, -1);
    this.#answer(op, slot);
    const next = this.#line.shift();
    this.#inFlight--;
    if (next) this.#start(next, slot);
    else this.#free.give(slot);
    op.done(result);
    if (this.#inFlight === 0) this.#idle();
  }

  #idle(): void {
    this.#keep(false);
    this.#onIdle?.();
    this.#onIdle = undefined;
  }

  /** Calls back once nothing is in flight. */
  whenIdle(callback: () => void): void {
    if (this.pending === 0) callback();
    else this.#onIdle = callback;
  }

  // The sleeper's side, for a thread without a context: the word is 1 from here until home takes it.
  #rest(): void {
    if (this.bh || this.#local || this.#armed || this.#inFlight === 0) return;
    const { words } = this;
    Atomics.store(words, Word.CLIENT_ASLEEP, 1);
    const wait = Atomics.waitAsync(words, Word.CLIENT_ASLEEP, 1);
    this.#armed = true;
    // What has ended before the word was 1 is not announced any more.
    const late = Atomics.load(words, Word.COMPLETED) !== this.#reaped;
    if (late && Atomics.exchange(words, Word.CLIENT_ASLEEP, 0) === 1) Atomics.notify(words, Word.CLIENT_ASLEEP);
    if (wait.async) void wait.value.then(this.#woken);
    else queueMicrotask(this.#woken);
  }

  readonly #woken = (): void => {
    this.#armed = false;
    this.reap();
  };

  /** Gives up `op`. What is in line, or has not begun in home, ends with ECANCELED; what has begun ends as it does. */
  cancel(op: BlkOp): void {
    if (op.slot === WAITING && this.#line.remove(op)) {
      op.slot = -1;
      lend(op, -1);
      markResumed();
      queueMicrotask(() => op.done(-Errno.ECANCELED));
    } else if (op.slot >= 0 && this.#ops[op.slot] === op) {
      Atomics.store(this.words, recordAt(op.slot) + Field.CANCEL, 1);
      Atomics.add(this.words, Word.CANCELS, 1);
      if (this.#local) this.#local.takeUp();
      else this.wakeHome();
    }
  }

  /** Runs `op` and waits, blocking the thread; 0 or a negative errno. `done` is not called, and nothing else runs. */
  submitSync(op: BlkOp): number {
    this.#check(op);
    const { words } = this;
    const at = recordAt(SYNC_SLOT);
    const state = at + Field.STATE;
    Atomics.store(words, state, SyncState.PENDING);
    this.#record(op, SYNC_SLOT);
    this.#publish();
    if (Atomics.compareExchange(words, state, SyncState.PENDING, SyncState.WAITING) === SyncState.PENDING) {
      while (Atomics.load(words, state) !== SyncState.DONE) {
        if (Atomics.wait(words, state, SyncState.WAITING, LOOK_MS) !== 'timed-out') continue;
        const end = this.#ended();
        if (end) throw end;
      }
    }
    this.#answer(op, SYNC_SLOT);
    return words[at + Field.RESULT]!;
  }

  /** What home has answered beside the result. */
  #answer(op: BlkOp, slot: number): void {
    if (op.status !== null) readStatus(this.words, slot, op.status);
    op.answered?.(this.words, recordAt(slot));
    if (this.words[recordAt(slot) + Field.DETAIL] === 0) return;
    if (!this.failures.has(slot)) this.#readPort();
    op.failure = this.failures.get(slot) ?? null;
    this.failures.delete(slot);
  }

  /** For who cannot be told by message because it waits. */
  #ended(): BlockError | undefined {
    const { name } = this.home;
    if (this.#home.dead) {
      this.end ??= new BlockError(
        Errno.EIO,
        `Could not use '${name}': the thread of its I/O, '${this.#home.name}', died`,
      );
    } else if (Atomics.load(this.#disk, DiskWord.CLOSED) === 1) {
      this.end ??= new BlockError(Errno.ESHUTDOWN, `Could not use '${name}': it is closed`);
    }
    return this.end;
  }

  /** Nothing is served any more: what has been answered is delivered, the rest fails with `error`. */
  fail(error: BlockError): void {
    if (this.#reaping) {
      // What ended before comes first.
      this.#failLater = error;
      return;
    }
    this.reap();
    this.end ??= error;
    const errno = -this.end.errno;
    const ops = this.#ops.filter((op) => op !== undefined);
    for (let op = this.#line.shift(); op; op = this.#line.shift()) ops.push(op);
    this.#ops.fill(undefined);
    if (this.#inFlight > 0) this.#keep(false);
    this.#inFlight = 0;
    // Who sleeps for them need not any more.
    Atomics.notify(this.words, Word.CLIENT_ASLEEP);
    // First all are at rest, then they are told: one of them may look at another.
    for (const op of ops) {
      op.slot = -1;
      lend(op, -1);
    }
    for (const op of ops) op.done(errno);
    this.#onIdle?.();
    this.#onIdle = undefined;
  }
}

/** Home's answer about block status. */
function readStatus(words: SharedWords, slot: number, out: BlockStatus): void {
  const at = recordAt(slot);
  const bits = words[at + Field.STATUS]!;
  out.set(readHalves(words, at + Field.LENGTH_LOW), (bits & 1) !== 0, (bits & 2) !== 0, words[at + Field.LAYER]!);
}

/** Counts the regions of an op as in use (1), or not any more (-1). */
function lend(op: BlkOp, by: number): void {
  if (op.kind > RequestKind.WRITE) return;
  const { memories, count } = op.iov;
  for (let i = 0; i < count; i++) (memories[i] as SharedRegion).users += by;
}
