/**
 * The home side of one channel: takes records up, runs them on the BlockBackend, answers.
 *
 * What the client wrote is copied once and checked: nothing it does later, and nothing it gets wrong, reaches beyond
 * its own slots, its own regions and the disk it was given. Faults it survives: a thread that dies at any point,
 * records of nonsense, memory that was never registered, a slot submitted twice. No request allocates but those that
 * wait (drains, block status that has to be loaded).
 */

import type { RemoteBottomHalfHandle } from '../aio/bottom-half.ts';
import type { RemoteContextHandle } from '../aio/context-shared.ts';
import { spawn } from '../aio/op.ts';
import { RemoteContext } from '../aio/remote.ts';
import { BlockError, Errno, errnoOf } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { Drained } from '../block/drain.ts';
import { Lendable } from '../block/lease.ts';
import { BlockRequest, Phase, RequestKind } from '../block/request.ts';
import { BlockStatus } from '../block/status.ts';
import {
  ChannelKind,
  Field,
  Lent,
  type MovedChannel,
  REGIONS_MAX,
  RUNS_MAX,
  readHalves,
  recordAt,
  type SharedWords,
  SLOTS,
  SYNC_SLOT,
  SyncState,
  type ToClient,
  type ToHome,
  Word,
  writeHalves,
} from './layout.ts';
import type { Lender } from './lender.ts';

const FLAGS = 0x3f;

/** A record that has been taken up. */
export class ChannelRequest extends BlockRequest {
  readonly #channel: ServerChannel;
  /** Its slot of the channel. */
  readonly place: number;
  /** Between taking up and the answer. */
  busy = false;

  constructor(channel: ServerChannel, slot: number) {
    super();
    this.#channel = channel;
    this.place = slot;
  }

  isOf(channel: ServerChannel): boolean {
    return channel === this.#channel;
  }

  done(error: number): void {
    this.#channel.finish(this, error);
  }
}

/** The control side of a channel. */
export interface ChannelLink {
  /** Takes in what the client has posted: for when a record tells of something not heard of yet. */
  read(): void;
  post(message: ToClient): void;
}

/** What a channel needs of the host it belongs to. */
export interface ChannelOwner {
  readonly blk: BlockBackend;
  /** 0, or the errno that every record is answered with. */
  readonly refusal: number;
  readonly lender: Lender;
  /** Answers are to be published, or records taken up, in this turn or the next. */
  schedule(): void;
  /** The last request has ended. */
  idle(): void;
}

/** All methods: home thread. */
export class ServerChannel {
  readonly words: SharedWords;
  /** A client in the home thread itself: it is called instead of woken. */
  local: { reap(): void } | null = null;
  inFlight = 0;
  readonly #owner: ChannelOwner;
  readonly #link: ChannelLink;
  readonly #requests: (ChannelRequest | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #regions = new Map<number, Memory>();
  readonly #drained: Drained[] = [];
  #taken = 0;
  #answered = 0;
  #cancels = 0;
  #dirty = false;
  #taking = false;
  #gone = false;
  /** Which file the client was told of. */
  #lentOf = 0;
  #remote: RemoteContextHandle | undefined;
  #client: RemoteContext | undefined;
  #clientBh: RemoteBottomHalfHandle | undefined;

  constructor(owner: ChannelOwner, words: SharedWords, link: ChannelLink) {
    this.#owner = owner;
    this.words = words;
    this.#link = link;
  }

  tell(message: ToClient): void {
    if (!this.#gone) this.#link.post(message);
  }

  /** What the client posted about its memory and itself. */
  receive(message: ToHome): void {
    if (message.kind === 'memory') {
      const { id, bytes } = message;
      if (this.#regions.size >= REGIONS_MAX || !(bytes.buffer instanceof SharedArrayBuffer)) return;
      this.#regions.set(id, this.#owner.blk.context.backend.memory(bytes));
    } else if (message.kind === 'forget') this.#regions.delete(message.id);
    else if (message.kind === 'client') {
      this.#remote = message.remote;
      this.#client = new RemoteContext(message.remote);
      this.#clientBh = message.bh;
    }
  }

  /**
   * Packs the channel up for another home; nothing of it is done here from then on. The root is drained; `queue` is
   * what has waited at the BlockBackend, in order.
   */
  depart(queue: readonly BlockRequest[]): Omit<MovedChannel, 'words' | 'port'> {
    const mine = queue.filter((request) => request instanceof ChannelRequest && request.isOf(this)) as ChannelRequest[];
    const others = this.#requests.filter((request) => request?.busy && !mine.includes(request)) as ChannelRequest[];
    // What has ended is shown by this home still.
    this.publish();
    for (const request of mine) request.busy = false;
    this.inFlight -= mine.length;
    const drains = this.#drained.length;
    const regions = [...this.#regions].map(([id, { bytes }]) => ({ id, bytes }));
    this.abandon();
    return {
      regions,
      ...{ taken: this.#taken, answered: this.#answered, cancels: this.#cancels, drains },
      waiting: [...mine, ...others].map(({ place }) => place),
      client: this.#remote && this.#clientBh && { remote: this.#remote, bh: this.#clientBh },
    };
  }

  /** Takes over what another home has packed up. {@link goOn} follows, once all channels are here. */
  arrive({ regions, taken, answered, cancels, drains, client }: MovedChannel): void {
    for (const { id, bytes } of regions) this.receive({ kind: 'memory', id, bytes });
    if (client) this.receive({ kind: 'client', ...client });
    this.#taken = taken;
    this.#answered = answered;
    this.#cancels = cancels;
    for (let i = 0; i < drains; i++) this.#drained.push(this.#owner.blk.drainQuiet());
  }

  /** Begins what waited in the old home. */
  goOn(waiting: readonly number[]): void {
    this.#taking = true;
    for (const slot of waiting) this.#begin(slot);
    this.#taking = false;
  }

  /** Takes up all records that are there. */
  takeUp(): void {
    if (this.#gone) return;
    const { words } = this;
    this.#taking = true;
    do {
      Atomics.store(words, Word.HOME_IDLE, 0);
      const end = Atomics.load(words, Word.SUBMITTED);
      while (this.#taken !== end && !this.#gone) {
        // A client that counts wildly gets no more than a round of the ring.
        if (((end - this.#taken) | 0) > SLOTS || ((end - this.#taken) | 0) < 0) this.#taken = (end - SLOTS) | 0;
        const slot = words[Word.SUBMIT_RING + (this.#taken & (SLOTS - 1))]! & (SLOTS - 1);
        this.#taken = (this.#taken + 1) | 0;
        this.#begin(slot);
      }
      Atomics.store(words, Word.HOME_IDLE, 1);
    } while (!this.#gone && Atomics.load(words, Word.SUBMITTED) !== this.#taken);
    const cancels = Atomics.load(words, Word.CANCELS);
    if (cancels !== this.#cancels) {
      this.#cancels = cancels;
      this.#takeBack((slot) => Atomics.load(words, recordAt(slot) + Field.CANCEL) !== 0);
    }
    this.#taking = false;
  }

  #begin(slot: number): void {
    const request = this.#request(slot);
    // Submitted while it is in flight: the answer to the first stands for both.
    if (request.busy) return;
    const { words } = this;
    const at = recordAt(slot);
    request.busy = true;
    request.failure = null;
    this.inFlight++;
    const { refusal } = this.#owner;
    const kind = words[at + Field.KIND]!;
    if (Atomics.load(words, at + Field.CANCEL) !== 0) this.finish(request, -Errno.ECANCELED);
    else if (refusal !== 0) this.finish(request, refusal);
    else if (kind === ChannelKind.STATUS) this.#status(request, at);
    else if (kind === ChannelKind.BORROW) this.#lend(request, at);
    else if (kind === ChannelKind.DRAIN_BEGIN) spawn(this.#drain(request));
    else if (kind === ChannelKind.DRAIN_END) this.#drainEnd(request);
    else if (kind >= RequestKind.READ && kind <= RequestKind.ZERO) this.#submit(request, kind, at);
    else this.finish(request, -Errno.EINVAL);
  }

  /** A slot's request object, made when it is first used. */
  #request(slot: number): ChannelRequest {
    let request = this.#requests[slot];
    if (request === undefined) {
      request = new ChannelRequest(this, slot);
      this.#requests[slot] = request;
    }
    return request;
  }

  #submit(request: ChannelRequest, kind: number, at: number): void {
    const { words } = this;
    request.kind = kind;
    request.flags = words[at + Field.FLAGS]! & FLAGS;
    request.at = readHalves(words, at + Field.AT_LOW);
    request.iov.reset();
    if (kind <= RequestKind.WRITE) {
      const error = this.#fill(request.iov, at);
      if (error !== 0) {
        this.finish(request, error);
        return;
      }
      request.length = request.iov.length;
    } else request.length = readHalves(words, at + Field.LENGTH_LOW);
    this.#owner.blk.submit(request);
  }

  #fill(iov: Iov, at: number): number {
    const { words } = this;
    const count = words[at + Field.RUN_COUNT]!;
    if (count < 0 || count > RUNS_MAX) return -Errno.EINVAL;
    for (let run = at + Field.RUNS, left = count; left > 0; left--, run += 3) {
      const memory = this.#regions.get(words[run]!) ?? this.#unheardOf(words[run]!);
      const from = words[run + 1]! >>> 0;
      const length = words[run + 2]! >>> 0;
      if (memory === undefined || from + length > memory.bytes.length) return -Errno.EFAULT;
      iov.push(memory, from, length);
    }
    return 0;
  }

  #unheardOf(region: number): Memory | undefined {
    this.#link.read();
    return this.#regions.get(region);
  }

  #status(request: ChannelRequest, at: number): void {
    const { words } = this;
    const out = new BlockStatus();
    const settle = (): void => {
      // Once it is gone, the record is another home's or nobody's.
      if (!this.#gone) writeStatus(words, at, out);
      this.finish(request, 0);
    };
    const fail = (error: unknown): void => {
      request.failure = error;
      this.finish(request, -errnoOf(error));
    };
    try {
      const offset = readHalves(words, at + Field.AT_LOW);
      const pending = this.#owner.blk.blockStatus(offset, readHalves(words, at + Field.LENGTH_LOW), out);
      if (pending === undefined) settle();
      else pending.then(settle, fail);
    } catch (error) {
      fail(error);
    }
  }

  #lend(request: ChannelRequest, at: number): void {
    const { words } = this;
    const { lender } = this.#owner;
    const found = new Lendable();
    const look = (): void => {
      // The record is another home's by now, or nobody's.
      if (this.#gone) {
        this.finish(request, 0);
        return;
      }
      const pending = lender.find(
        readHalves(words, at + Field.AT_LOW),
        readHalves(words, at + Field.LENGTH_LOW),
        found,
      );
      if (pending !== undefined) {
        pending.then(look).catch(fail);
        return;
      }
      this.#lent(at, found);
      this.finish(request, 0);
    };
    const fail = (error: unknown): void => this.finish(request, -errnoOf(error));
    try {
      look();
    } catch (error) {
      fail(error);
    }
  }

  #lent(at: number, { length, at: place, leaf, mayWrite, never }: Lendable): void {
    const { words } = this;
    const { lender } = this.#owner;
    const { epoch } = lender;
    if (length > 0 && lender.generation !== this.#lentOf) {
      this.#lentOf = lender.generation;
      this.#link.post({ kind: 'file', fd: leaf!.impl.descriptor!, epoch });
    }
    writeHalves(words, at + Field.LENGTH_LOW, length);
    writeHalves(words, at + Field.AT_LOW, place);
    words[at + Field.STATUS] = never ? Lent.NEVER : length === 0 ? 0 : mayWrite ? Lent.READ | Lent.WRITE : Lent.READ;
    words[at + Field.LAYER] = epoch;
  }

  async #drain(request: ChannelRequest): Promise<void> {
    const drained = await this.#owner.blk.drain();
    if (this.#gone || this.#owner.refusal !== 0) drained.end();
    else this.#drained.push(drained);
    this.finish(request, 0);
  }

  #drainEnd(request: ChannelRequest): void {
    const drained = this.#drained.pop();
    this.finish(request, drained ? 0 : -Errno.EINVAL);
    drained?.end();
  }

  /** @internal A request has ended. */
  finish(request: ChannelRequest, error: number): void {
    const { words } = this;
    const slot = request.place;
    request.busy = false;
    this.inFlight--;
    if (this.#gone) {
      if (this.inFlight === 0) this.#forget();
      return;
    }
    const at = recordAt(slot);
    words[at + Field.RESULT] = error;
    words[at + Field.DETAIL] = 0;
    if (error !== 0 && request.failure instanceof BlockError) {
      words[at + Field.DETAIL] = 1;
      this.#link.post({ kind: 'failure', slot, error: request.failure.toPlain() });
    }
    if (slot === SYNC_SLOT) {
      if (Atomics.exchange(words, at + Field.STATE, SyncState.DONE) === SyncState.WAITING) {
        Atomics.notify(words, at + Field.STATE);
      }
    } else {
      words[Word.COMPLETE_RING + (this.#answered & (SLOTS - 1))] = slot;
      this.#answered = (this.#answered + 1) | 0;
      this.#dirty = true;
      // Inside its own submit() a local client is not called.
      if (this.local !== null && !this.#taking) this.publish();
      else this.#owner.schedule();
    }
    if (this.inFlight === 0 && this.#owner.refusal !== 0) this.#owner.idle();
  }

  /** Shows the client what has ended; wakes it when it sleeps. */
  publish(): void {
    if (!this.#dirty) return;
    this.#dirty = false;
    const { words } = this;
    Atomics.store(words, Word.COMPLETED, this.#answered);
    if (this.local !== null) this.local.reap();
    else if (Atomics.exchange(words, Word.CLIENT_ASLEEP, 0) === 0) words[Word.CLIENT_WAKES_SAVED]!++;
    else this.#wake();
  }

  #wake(): void {
    const { words } = this;
    words[Word.CLIENT_WAKES]!++;
    if (words[Word.CLIENT_HAS_LOOP] === 0) {
      Atomics.notify(words, Word.CLIENT_ASLEEP);
      return;
    }
    if (!this.#client) this.#link.read();
    if (this.#client && this.#clientBh) this.#client.schedule(this.#clientBh);
  }

  /** No more requests of drained sections that were begun here are held back. */
  endDrains(): void {
    for (const drained of this.#drained.splice(0)) drained.end();
  }

  /** The client is no more: nothing of it begins from here on, what waits is taken back, what is under way ends into
   *  memory that stays until then. */
  abandon(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#takeBack(() => true);
    this.endDrains();
    if (this.inFlight === 0) this.#forget();
  }

  #forget(): void {
    this.#regions.clear();
    this.#owner.idle();
  }

  /** Those that wait for the end of a drained section, and that `which` says, end with ECANCELED. */
  #takeBack(which: (slot: number) => boolean): void {
    for (const request of this.#requests) {
      if (!request?.busy || request.phase !== Phase.QUEUED || !which(request.place)) continue;
      if (this.#owner.blk.takeBack(request)) this.finish(request, -Errno.ECANCELED);
    }
  }
}

/** The answer about block status, in the record at `at`. */
function writeStatus(words: SharedWords, at: number, out: BlockStatus): void {
  writeHalves(words, at + Field.LENGTH_LOW, out.length);
  words[at + Field.STATUS] = (out.data ? 1 : 0) | (out.zero ? 2 : 0);
  words[at + Field.LAYER] = out.depth;
}
