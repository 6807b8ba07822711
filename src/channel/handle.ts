/**
 * BlkHandle: a BlockBackend in the hand of any thread (docs/CHANNELS.md). In the home context requests go straight into
 * the BlockBackend's fast path; from any other thread they go through the channel's shared rings, without a lock.
 *
 * Faults it answers with a BlockError: use after close EBADF, after the disk was closed ESHUTDOWN, after its thread
 * died EIO; memory that is not shared or not registered EFAULT, in use EBUSY; a request submitted twice EALREADY; a
 * descriptor that is none EINVAL, that was given to another thread EPERM, that was used already EBUSY; synchronous I/O
 * where it could never end EDEADLK.
 */
import { type MessagePort, receiveMessageOnPort, threadId } from 'node:worker_threads';
import type { AioContext } from '../aio/context.ts';
import { type GlobalHeld, GlobalMutex } from '../aio/global-mutex.ts';
import { type ContextStats, contextStats } from '../aio/loop-counters.ts';
import { onAbort } from '../aio/on-abort.ts';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno, ioError } from '../base/errors.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { IoCounters, type IoStats } from '../block/io-counters.ts';
import type { BlockStatus } from '../block/status.ts';
import { Borrower } from './borrower.ts';
import { ChannelClient } from './client.ts';
import { claim, descriptorOf, newOffer } from './descriptor.ts';
import { type ChannelHost, localHost } from './host.ts';
import {
  type BlkDescriptor,
  ChannelKind,
  DiskWord,
  diskLength,
  RUNS_MAX,
  type SharedWords,
  type ToClient,
  type ToHome,
  Word,
} from './layout.ts';
import { BlkKind, BlkOp } from './op.ts';
import { RegionTable, type SharedRegion } from './region.ts';
import type { ServerChannel } from './server-channel.ts';

const VERBS: Readonly<Record<number, string>> = {
  [BlkKind.READ]: 'read',
  [BlkKind.WRITE]: 'write',
  [BlkKind.FLUSH]: 'flush',
  [BlkKind.DISCARD]: 'discard',
  [BlkKind.ZERO]: 'zero',
  [BlkKind.STATUS]: 'get the status of',
  [ChannelKind.DRAIN_BEGIN]: 'drain',
  [ChannelKind.DRAIN_END]: 'end the drain of',
};

class GateOp extends BlkOp {
  readonly gate = new Gate<number>();

  done(error: number): void {
    this.gate.open(error);
  }
}

/** Its end is not waited for. */
class LooseOp extends BlkOp {
  done(): void {}
}

export interface AttachOptions {
  /** The loop of this thread, where there is one: completions then come through it. */
  readonly context?: AioContext;
}

export interface IoOptions {
  /** RequestFlags. */
  readonly flags?: number;
  /** Gives the request up: it ends with ECANCELED where it had not begun, as it does otherwise. */
  readonly signal?: AbortSignal;
}

/** How often this handle's channel woke either side, and how often that was saved. */
export interface ChannelStats {
  readonly homeWakes: number;
  readonly homeWakesSaved: number;
  readonly clientWakes: number;
  readonly clientWakesSaved: number;
}

/** All methods: the thread that attached. Offsets and lengths in bytes. */
export class BlkHandle {
  readonly name: string;
  readonly #client: ChannelClient;
  readonly #regions: RegionTable;
  readonly #disk: SharedWords;
  readonly #mutex: GlobalMutex;
  readonly #port: MessagePort | undefined;
  readonly #local: { readonly host: ChannelHost; readonly channel: ServerChannel } | undefined;
  #borrower: Borrower | undefined;
  /** Told when {@link length} has changed. */
  onResize: () => void = () => undefined;
  #drains = 0;
  #closed = false;

  private constructor(descriptor: BlkDescriptor, port: MessagePort, { context }: AttachOptions) {
    this.name = descriptor.name;
    this.#disk = descriptor.disk;
    this.#mutex = new GlobalMutex(descriptor.mutex);
    const { words } = descriptor;
    const host = localHost(descriptor, context);
    if (host) {
      port.close();
      this.#local = { host, channel: host.local(words, (message) => this.#receive(message)) };
    } else {
      this.#port = port;
      port.on('message', (message: ToClient) => this.#receive(message));
      port.on('close', () => this.#portClosed());
      port.unref();
    }
    this.#client = new ChannelClient({
      identity: descriptor,
      words,
      context,
      local: this.#local?.channel,
      keep: (alive) => (alive ? this.#port?.ref() : this.#port?.unref()),
      readPort: () => this.#readPort(),
    });
    if (this.#local) this.#local.channel.local = this.#client;
    if (this.#client.bh && context) {
      this.#post({ kind: 'client', remote: context.remote(), bh: this.#client.bh.remote() });
    }
    this.#regions = new RegionTable(this.#client, (message) => this.#post(message));
  }

  /** The first use of a descriptor, in the thread it was made for. */
  static attach(descriptor: BlkDescriptor, options: AttachOptions = {}): BlkHandle {
    return new BlkHandle(descriptor, claim(descriptor), options);
  }

  get length(): Bytes {
    return diskLength(this.#disk);
  }

  get readOnly(): boolean {
    return this.#disk[DiskWord.READ_ONLY] === 1;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Why it serves no more: the disk was closed (ESHUTDOWN), or its thread has died (EIO). */
  get end(): BlockError | undefined {
    return this.#client.end;
  }

  /** Requests in flight, and in line for a slot. */
  get pending(): number {
    return this.#client.pending;
  }

  get stats(): ChannelStats {
    const { words } = this.#client;
    return {
      homeWakes: words[Word.HOME_WAKES]! >>> 0,
      homeWakesSaved: words[Word.HOME_WAKES_SAVED]! >>> 0,
      clientWakes: words[Word.CLIENT_WAKES]! >>> 0,
      clientWakesSaved: words[Word.CLIENT_WAKES_SAVED]! >>> 0,
    };
  }

  /** What the disk has done so far, for whichever thread. */
  get diskStats(): IoStats {
    return new IoCounters(this.#client.home.counters).snapshot();
  }

  /** What the disk's home context has done so far. */
  get homeStats(): ContextStats {
    return contextStats(this.#client.home.home);
  }

  /** A descriptor for one more thread: post it with its `port` in the transfer list. */
  share(): BlkDescriptor {
    this.#assertUsable();
    const { offer, port } = newOffer();
    const { home } = this.#client;
    if (this.#local) this.#local.host.introduce(offer);
    else this.#post({ kind: 'introduce', offer, home: { homeThread: home.homeThread, id: home.id } }, [offer.port]);
    return descriptorOf(home, offer.words, port);
  }

  /** @internal For who does I/O on lent extents himself, in `context`; undefined in the home. */
  borrow(context: AioContext): Borrower | undefined {
    if (this.#local) return undefined;
    const handle = this;
    this.#borrower = new Borrower(context, {
      words: this.#client.words,
      disk: this.#disk,
      get length() {
        return handle.length;
      },
      submit: (op) => this.submit(op),
      wakeHome: () => this.#client.wakeHome(),
      readPort: () => this.#readPort(),
    });
    return this.#borrower;
  }

  // Memory.

  /** Makes a SharedArrayBuffer (at most 4 GiB) usable for requests of this handle. EFAULT for any other buffer. */
  register(buffer: SharedArrayBuffer): SharedRegion {
    this.#assertUsable();
    return this.#regions.add(buffer);
  }

  /** Takes a region back: EBUSY while a request uses it, EBADF when it is not registered (any more). */
  unregister(region: SharedRegion): void {
    this.#assertUsable();
    this.#regions.remove(region);
  }

  // Requests in callback form.

  /** Begins `op`; `done` comes later, never inside this call. Throws for what can only be a mistake. */
  submit(op: BlkOp): void {
    if (this.#closed) this.#assertUsable();
    this.#client.submit(op);
  }

  /** Gives up `op`, if it is in flight: see IoOptions.signal. */
  cancel(op: BlkOp): void {
    this.#client.cancel(op);
  }

  /** For a thread that looks for itself instead of going back to its loop: delivers what has ended, and how many. */
  reap(): number {
    return this.#client.reap();
  }

  // Requests as promises. They reject with BlockError.

  /** Fills `bytes`, which lie on a registered buffer. EIO beyond the end. */
  read(at: Offset, bytes: Uint8Array, options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.READ, at, [bytes], options);
  }

  readv(at: Offset, list: readonly Uint8Array[], options?: IoOptions): Promise<void> {
    return this.#vector(BlkKind.READ, at, list, options);
  }

  write(at: Offset, bytes: Uint8Array, options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.WRITE, at, [bytes], options);
  }

  writev(at: Offset, list: readonly Uint8Array[], options?: IoOptions): Promise<void> {
    return this.#vector(BlkKind.WRITE, at, list, options);
  }

  flush(options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.FLUSH, 0, 0, options);
  }

  discard(at: Offset, length: Bytes, options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.DISCARD, at, length, options);
  }

  writeZeroes(at: Offset, length: Bytes, options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.ZERO, at, length, options);
  }

  /** The extent at `at`, at most `length` bytes of it, in `out`. */
  blockStatus(at: Offset, length: Bytes, out: BlockStatus, options?: IoOptions): Promise<void> {
    return this.#request(BlkKind.STATUS, at, length, options, out);
  }

  /** `using drained = await handle.drain()`: nothing is in flight on the disk until the block ends, from any thread;
   *  what comes waits. This handle's own requests wait as well. */
  async drain(): Promise<HandleDrained> {
    this.#drains++;
    try {
      await this.#request(ChannelKind.DRAIN_BEGIN, 0, 0);
    } catch (error) {
      this.#drains--;
      throw error;
    }
    return new HandleDrained(() => this.#drainEnd());
  }

  #drainEnd(): void {
    this.#drains--;
    // What has died, or was closed, has ended its drained sections.
    if (!this.#closed && !this.#client.end) this.#client.submit(this.#loose(ChannelKind.DRAIN_END));
  }

  // Synchronous requests: they take the global mutex and block the thread. EDEADLK in the home context, in IOThreads.

  readSync(at: Offset, bytes: Uint8Array, flags = 0): void {
    this.#runSync(this.#op(BlkKind.READ, at, [bytes], { flags }));
  }

  writeSync(at: Offset, bytes: Uint8Array, flags = 0): void {
    this.#runSync(this.#op(BlkKind.WRITE, at, [bytes], { flags }));
  }

  flushSync(): void {
    this.#runSync(this.#op(BlkKind.FLUSH, 0, 0));
  }

  discardSync(at: Offset, length: Bytes): void {
    this.#runSync(this.#op(BlkKind.DISCARD, at, length));
  }

  writeZeroesSync(at: Offset, length: Bytes, flags = 0): void {
    this.#runSync(this.#op(BlkKind.ZERO, at, length, { flags }));
  }

  blockStatusSync(at: Offset, length: Bytes, out: BlockStatus): void {
    const op = this.#op(BlkKind.STATUS, at, length);
    op.status = out;
    this.#runSync(op);
  }

  /** {@link drain}, at once; its end does not block. */
  drainSync(): HandleDrained {
    this.#runSync(this.#op(ChannelKind.DRAIN_BEGIN, 0, 0));
    this.#drains++;
    return new HandleDrained(() => this.#drainEnd());
  }

  /** Waits for what is in flight, then gives all back. EBADF the second time. */
  async close(): Promise<void> {
    if (this.#closed) this.#assertUsable();
    this.#closed = true;
    while (this.#drains > 0 && !this.#client.end) {
      this.#drains--;
      this.#client.submit(this.#loose(ChannelKind.DRAIN_END));
    }
    const idle = new Gate();
    this.#client.whenIdle(() => idle.open());
    await idle.promise;
    if (this.#local) this.#local.host.release(this.#local.channel);
    this.#post({ kind: 'close' });
    this.#port?.close();
    this.#client.bh?.delete();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#closed) await this.close();
  }

  #assertUsable(): void {
    if (this.#closed) throw new BlockError(Errno.EBADF, `Could not use '${this.name}': the handle is closed`);
    if (this.#client.end) throw this.#client.end;
  }

  #receive(message: ToClient): void {
    if (message.kind === 'file') {
      this.#borrower?.fileIs(message.fd, message.epoch);
      return;
    }
    if (message.kind === 'home') {
      this.#client.movedTo(message.identity, message.epoch);
      return;
    }
    if (message.kind === 'resized') {
      this.onResize();
      return;
    }
    const error = BlockError.fromPlain(message.error);
    if (message.kind === 'failure') this.#client.failures.set(message.slot, error);
    else this.#client.fail(error);
  }

  #readPort(): void {
    const port = this.#port;
    if (!port) return;
    for (let got = receiveMessageOnPort(port); got; got = receiveMessageOnPort(port)) this.#receive(got.message);
  }

  #portClosed(): void {
    if (this.#closed && this.#client.pending === 0) return;
    const { home } = this.#client.home;
    this.#client.fail(new BlockError(Errno.EIO, `Could not use '${this.name}': its thread '${home.name}' died`));
  }

  #post(message: ToHome, transfer: readonly MessagePort[] = []): void {
    if (this.#local) this.#local.channel.receive(message);
    else this.#port!.postMessage(message, transfer);
  }

  #op(kind: number, at: Offset, what: Bytes | readonly Uint8Array[], { flags = 0 }: IoOptions = {}): GateOp {
    const op = new GateOp();
    op.kind = kind;
    op.at = at;
    op.flags = flags;
    if (typeof what === 'number') op.length = what;
    else {
      for (const bytes of what) this.#regions.push(op.iov, bytes);
      op.length = op.iov.length;
    }
    return op;
  }

  #loose(kind: number): BlkOp {
    const op = new LooseOp();
    op.kind = kind;
    return op;
  }

  async #request(
    kind: number,
    at: Offset,
    what: Bytes | readonly Uint8Array[],
    options: IoOptions = {},
    status: BlockStatus | null = null,
  ): Promise<void> {
    const { signal } = options;
    this.#assertUsable();
    signal?.throwIfAborted();
    const op = this.#op(kind, at, what, options);
    op.status = status;
    this.#client.submit(op);
    const off = signal ? onAbort(signal, () => this.#client.cancel(op)) : undefined;
    const error = await op.gate.promise;
    off?.();
    if (error !== 0) throw signal?.aborted ? signal.reason : this.#error(op, error);
  }

  /** More pieces than a record holds are several requests. */
  async #vector(kind: number, at: Offset, list: readonly Uint8Array[], options?: IoOptions): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let first = 0, from = at; first < list.length || first === 0; first += RUNS_MAX) {
      const part = list.slice(first, first + RUNS_MAX);
      parts.push(this.#request(kind, from, part, options));
      from += part.reduce((sum, bytes) => sum + bytes.length, 0);
    }
    for (const part of await Promise.allSettled(parts)) if (part.status === 'rejected') throw part.reason;
  }

  #runSync(op: GateOp): void {
    this.#assertUsable();
    using _held = this.#lock(op);
    const error = this.#client.submitSync(op);
    if (error !== 0) throw this.#error(op, error);
  }

  /** The mutex, where a synchronous request can end at all. */
  #lock(op: GateOp): GlobalHeld {
    const refuse = (why: string): BlockError =>
      new BlockError(Errno.EDEADLK, `Could not ${this.#describe(op)} synchronously: ${why}`);
    if (this.#client.home.homeThread === threadId) throw refuse('this thread does its I/O itself');
    if (this.#drains > 0) throw refuse('it is drained by this handle');
    return this.#mutex.lock();
  }

  #describe({ kind, at, length }: BlkOp): string {
    const ranged = kind !== BlkKind.FLUSH && kind < ChannelKind.DRAIN_BEGIN;
    return ranged ? `${VERBS[kind]} ${length} bytes at ${at}` : `${VERBS[kind]} '${this.name}'`;
  }

  #error(op: BlkOp, error: number): BlockError {
    const { end } = this.#client;
    if (end?.errno === -error) return end;
    if (op.failure) return op.failure;
    const { kind, at, length } = op;
    const where = { node: this.name, op: VERBS[kind] ?? '', at, length };
    const what = `Could not ${this.#describe(op)}`;
    const isBeyond = error === -Errno.EIO && at + length > this.length;
    if (isBeyond) return new BlockError(-error, `${what}: it ends at ${this.length}`, { where });
    return ioError(error, what, where);
  }
}

/** A drained section of a handle; ends once. */
export class HandleDrained implements Disposable {
  #onEnd: (() => void) | undefined;

  constructor(onEnd: () => void) {
    this.#onEnd = onEnd;
  }

  end(): void {
    const onEnd = this.#onEnd;
    this.#onEnd = undefined;
    onEnd?.();
  }

  [Symbol.dispose](): void {
    this.end();
  }
}

/** Drains several disks, in whichever contexts: all are told to stop before any is waited for (D5). */
export async function drainHandles(handles: Iterable<BlkHandle>): Promise<HandleDrained> {
  const begun = await Promise.allSettled([...handles].map((handle) => handle.drain()));
  const all = new HandleDrained(() => {
    for (const one of begun) if (one.status === 'fulfilled') one.value.end();
  });
  for (const one of begun) {
    if (one.status === 'fulfilled') continue;
    all.end();
    throw one.reason;
  }
  return all;
}
