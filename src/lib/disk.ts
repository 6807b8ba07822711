/** A disk, in the shape of node's FileHandle, so that code written for files takes it. */
import type { ReadableStream } from 'node:stream/web';
import { CoMutex } from '../aio/co-mutex.ts';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB, MAX_OFFSET, type Offset } from '../base/units.ts';
import type { CheckResult } from '../block/driver.ts';
import { RequestFlags } from '../block/driver.ts';
import { IoCounters, type IoStats } from '../block/io-counters.ts';
import type { BlkDescriptor } from '../channel/layout.ts';
import { type Abortable, abortable } from './abort.ts';
import { DiskBitmaps } from './bitmaps.ts';
import {
  type BufferOptions,
  isCurrent,
  offsetOf,
  type Position,
  readBuffer,
  textBytes,
  transferArgs,
  viewOf,
} from './disk-args.ts';
import { DiskChannel } from './disk-channel.ts';
import { DiskHome } from './disk-home.ts';
import type { DiskBackupOptions, DiskCommitOptions, DiskMirrorOptions } from './disk-jobs.ts';
import { backupDisk, commitDisk, mirrorDisk } from './disk-jobs.ts';
import { DiskSnapshots } from './disk-snapshots.ts';
import { DiskStat } from './disk-stat.ts';
import { type AmendOptions, type CheckOptions, driverOptions, fixOf, type TruncateOptions } from './image-options.ts';
import { IOThread, type ThreadUse } from './iothread.ts';
import type { BlockExtent, Method, MethodArgs, MethodResult, OpenReply } from './messages.ts';
import type { BlockdevOptions } from './options.ts';
import { type DiskStreamOptions, streamDisk } from './stream.ts';
import { DiskReadStream, DiskWriteStream, type ReadStreamOptions, webStream } from './streams.ts';
import { readInto, writeFrom } from './transfer.ts';

const DEFAULT_READ = 16 * KiB;

export interface ZeroOptions extends Abortable {
  /** The range may be deallocated. */
  readonly unmap?: boolean | undefined;
  /** On stable storage when it ends. */
  readonly fua?: boolean | undefined;
}

export interface ReadResult<T extends ArrayBufferView> {
  readonly bytesRead: Bytes;
  readonly buffer: T;
}

export interface WriteResult<T extends ArrayBufferView | string> {
  readonly bytesWritten: Bytes;
  readonly buffer: T;
}

/**
 * An open disk image or device. Offsets and lengths are bytes, as numbers or bigints below 2^53 (EFBIG from there on).
 * Requests may overlap in time and end in any order; what a write returned for is visible to every later read.
 * All failures reject with BlockError: EIO, ENOSPC, EPERM (read-only), EBADF (closed), EINVAL (bad arguments), ...
 *
 * ```ts
 * await using disk = await open('disk.img');
 * const { bytesRead, buffer } = await disk.read(new Uint8Array(512), 0, 512, 0);
 * ```
 */
export class Disk {
  /** The file name it was opened by, or its driver's name. */
  readonly name: string;
  readonly readOnly: boolean;
  /** Which parts have been written, since when. */
  readonly bitmaps: DiskBitmaps;
  /** @internal */
  readonly id: number;
  /** @internal */
  readonly home: DiskHome;
  readonly #counters: IoCounters;
  readonly #channel: DiskChannel;
  readonly #cursorLock = new CoMutex();
  readonly #dependents = new Set<() => Promise<unknown>>();
  #cursor: Offset = 0;
  #size: Bytes;
  #pending = 0;
  #idle: Gate | undefined;
  #closing: Promise<void> | undefined;

  /** @internal Use open(). */
  constructor(use: ThreadUse, reply: OpenReply, name: string) {
    this.home = new DiskHome(reply.disk, use, reply.nodeName);
    this.id = reply.disk;
    this.name = name;
    this.readOnly = reply.readOnly;
    this.#size = reply.size;
    this.bitmaps = new DiskBitmaps((method, args) => this.#call(method, { disk: this.id, ...args } as never));
    this.#counters = new IoCounters(reply.counters);
    this.#channel = new DiskChannel(this);
  }

  /** Of its root. */
  get nodeName(): string {
    return this.home.nodeName;
  }

  /** Bytes; as of the last open, truncate or stat. */
  get size(): Bytes {
    return this.#size;
  }

  /** What it has done so far, for whichever client or thread; does not disturb its thread. */
  get ioStats(): IoStats {
    return this.#counters.snapshot();
  }

  /** The thread whose loop does its I/O. */
  get iothread(): IOThread {
    return this.home.thread;
  }

  get closed(): boolean {
    return this.#closing !== undefined;
  }

  /**
   * Reads into `buffer`. Fewer bytes than asked for mean that the disk ended there. Without a position it goes on where
   * the last such read or write ended. Without a buffer it makes one of 16 KiB.
   */
  read<T extends ArrayBufferView>(
    buffer: T,
    offset?: number | null,
    length?: number | null,
    position?: Position,
  ): Promise<ReadResult<T>>;
  read<T extends ArrayBufferView>(buffer: T, options?: BufferOptions<T>): Promise<ReadResult<T>>;
  read<T extends ArrayBufferView = Buffer>(options?: BufferOptions<T>): Promise<ReadResult<T>>;
  async read<T extends ArrayBufferView>(
    first?: T | BufferOptions<T>,
    second?: number | null | BufferOptions<T>,
    length?: number | null,
    position?: Position,
  ): Promise<ReadResult<T>> {
    const fallback = (): T => readBuffer(DEFAULT_READ) as unknown as T;
    const args = transferArgs(first, second, length, position, fallback);
    const bytesRead = await this.#read([args.view], args.position, args.signal);
    return { bytesRead, buffer: args.buffer };
  }

  /** Fills `buffers` one after the other. */
  async readv<T extends ArrayBufferView>(
    buffers: readonly T[],
    position?: Position,
  ): Promise<{ bytesRead: Bytes; buffers: readonly T[] }> {
    return { bytesRead: await this.#read(buffers.map(viewOf), position, undefined), buffers };
  }

  /**
   * Writes all of the buffer's part, or rejects: EIO beyond the end of the disk, ENOSPC when the storage is full. With
   * a signal that fires midway, some of it may have been written. Text is written in `encoding`, default utf8.
   */
  write<T extends ArrayBufferView>(
    buffer: T,
    offset?: number | null,
    length?: number | null,
    position?: Position,
  ): Promise<WriteResult<T>>;
  write<T extends ArrayBufferView>(buffer: T, options?: BufferOptions<T>): Promise<WriteResult<T>>;
  write(text: string, position?: Position, encoding?: BufferEncoding | null): Promise<WriteResult<string>>;
  async write<T extends ArrayBufferView>(
    first: T | string,
    second?: Position | BufferOptions<T>,
    third?: number | BufferEncoding | null,
    position?: Position,
  ): Promise<WriteResult<T | string>> {
    if (typeof first === 'string') {
      const bytesWritten = await this.#write([textBytes(first, third)], second as Position, undefined);
      return { bytesWritten, buffer: first };
    }
    const length = third as number | null | undefined;
    const args = transferArgs(first, second as number | null | BufferOptions<T>, length, position, () => first);
    const bytesWritten = await this.#write([args.view], args.position, args.signal);
    return { bytesWritten, buffer: args.buffer };
  }

  /** Writes `buffers` one after the other. */
  async writev<T extends ArrayBufferView>(
    buffers: readonly T[],
    position?: Position,
  ): Promise<{ bytesWritten: Bytes; buffers: readonly T[] }> {
    return { bytesWritten: await this.#write(buffers.map(viewOf), position, undefined), buffers };
  }

  /** Every write that has returned is on stable storage after it. */
  flush(options: Abortable = {}): Promise<void> {
    return this.#call('flush', { disk: this.id }, options.signal);
  }

  sync(): Promise<void> {
    return this.flush();
  }

  datasync(): Promise<void> {
    return this.flush();
  }

  /** Makes a range read as zeroes, by the cheapest way there is. */
  writeZeroes(position: number | bigint, length: number | bigint, options: ZeroOptions = {}): Promise<void> {
    const flags = (options.unmap ? RequestFlags.MAY_UNMAP : 0) | (options.fua ? RequestFlags.FUA : 0);
    return this.#range('zero', position, length, flags, options);
  }

  /** Says that a range's content is no longer needed. Advisory: what it reads as afterwards is not defined. */
  discard(position: number | bigint, length: number | bigint, options: Abortable = {}): Promise<void> {
    return this.#range('discard', position, length, 0, options);
  }

  /**
   * What is where: ranges from `position` on, in order and without gaps, neighbours of one kind joined as far as one
   * answer goes. Default: the whole disk.
   */
  async *blockStatus(
    position: number | bigint = 0,
    length?: number | bigint,
    options: Abortable = {},
  ): AsyncGenerator<BlockExtent, void, undefined> {
    let at = offsetOf(position, 'position');
    const want = length === undefined ? MAX_OFFSET : offsetOf(length, 'length');
    const end = Math.min(at + want, this.#size);
    while (at < end) {
      options.signal?.throwIfAborted();
      const message = { disk: this.id, at, length: end - at, flags: 0 };
      const extents = await this.#call('status', message, options.signal);
      if (extents.length === 0) return;
      for (const extent of extents) {
        yield extent;
        at = extent.offset + extent.length;
      }
    }
  }

  async stat(): Promise<DiskStat> {
    const reply = await this.#call('stat', { disk: this.id });
    this.#size = reply.size;
    return new DiskStat(reply);
  }

  /** Resizes; what is added reads as zeroes. ENOTSUP where the format or the device cannot. */
  async truncate(size: number | bigint = 0, options: TruncateOptions = {}): Promise<void> {
    const { preallocation = 'off' } = options;
    const message = { disk: this.id, size: offsetOf(size, 'size'), preallocation };
    this.#size = await this.#call('truncate', message);
  }

  /** Looks for damage in the image's metadata. With `repair`, leaks are given back, or everything is mended. */
  check(options: CheckOptions = {}): Promise<CheckResult> {
    const message = { disk: this.id, fix: fixOf(options) };
    return this.#call('check', message);
  }

  /** Changes the image's header. Another backing file is used from the next open on. */
  async amend(changes: AmendOptions): Promise<void> {
    const message = { disk: this.id, changes: driverOptions({ ...changes }) };
    await this.#call('amend', message);
  }

  /** The internal snapshots of the image; ENOTSUP where its format has none. */
  get snapshots(): DiskSnapshots {
    return new DiskSnapshots(async (action, which = '') => {
      const message = { disk: this.id, action, which };
      const reply = await this.#call('snapshots', message);
      this.#size = reply.size;
      return reply.snapshots;
    });
  }

  /**
   * A way to this disk for one other thread, which then does its I/O without this one: post it with its `port` in the
   * transfer list, and `BlkHandle.attach` it there. The disk's close ends it.
   *
   * ```ts
   * const descriptor = await disk.handle();
   * new Worker(url, { workerData: descriptor, transferList: [descriptor.port] });
   * ```
   */
  handle(): Promise<BlkDescriptor> {
    return this.#io(() => this.descriptor(), undefined);
  }

  /**
   * Moves the disk into another IOThread, with all its nodes, while it is used: requests wait for the time of the move,
   * handles of other threads and the disk itself go on with the new thread, and so do clients of services, whose
   * connections stay in the thread of their service. Where it rejects, everything is as it was: EBUSY with what keeps
   * it there (an export that shows bitmaps, a node that another disk uses, ...), ENOTSUP with the driver that cannot,
   * or what went wrong in writing or opening.
   */
  async setAioContext(iothread: IOThread): Promise<void> {
    if (!(iothread instanceof IOThread)) {
      throw new BlockError(Errno.EINVAL, `iothread: expected an IOThread, not ${typeof iothread}`);
    }
    await this.#io(() => this.home.move(iothread), undefined);
  }

  /**
   * Makes the image independent of what is below it, or above `base`, while it is used: what only layers below hold is
   * copied into it, and then it names the base, or nothing. Where it rejects, or the process dies on the way, it reads
   * as it did, and what was copied stays. EBUSY: snapshots or a job need it; EINVAL: a layer ends before the base does.
   */
  stream(options: DiskStreamOptions = {}): Promise<void> {
    return streamDisk(this, options);
  }

  /** Writes what its upper layers hold into a lower one, and does without them. Goes on being used meanwhile. */
  commit(options: DiskCommitOptions = {}): Promise<void> {
    return commitDisk(this, options);
  }

  /** Makes another image what this disk is now, while this one is written to. A file that is not there is made. */
  backup(target: string | BlockdevOptions, options: DiskBackupOptions = {}): Promise<void> {
    return backupDisk(this, target, options);
  }

  /** Makes another image what this disk is, and goes on with that one. A file that is not there is made. */
  mirror(target: string | BlockdevOptions, options: DiskMirrorOptions = {}): Promise<void> {
    return mirrorDisk(this, target, options);
  }

  createReadStream(options: ReadStreamOptions = {}): DiskReadStream {
    return new DiskReadStream(this, options);
  }

  /** Writes from `start` on; its end flushes. Writing past `end` or the disk's end fails. */
  createWriteStream(options: ReadStreamOptions = {}): DiskWriteStream {
    return new DiskWriteStream(this, options);
  }

  readableWebStream(options: ReadStreamOptions = {}): ReadableStream<Uint8Array> {
    return webStream(this, options);
  }

  /**
   * Stops what serves it, waits for requests under way, flushes and closes. Again: the same end. Rejects when the last
   * flush failed; the disk is closed all the same.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @internal `stop` runs before the disk closes; the answer takes it back. */
  dependOn(stop: () => Promise<unknown>): () => void {
    this.#assertOpen();
    this.#dependents.add(stop);
    return () => this.#dependents.delete(stop);
  }

  /** @internal For one more thread. */
  descriptor(): Promise<BlkDescriptor> {
    return this.home.descriptor();
  }

  /** @internal Runs `body` while the disk does not move; exports in `thread` can show it, wherever its home is. */
  shownIn<T>(thread: IOThread, body: () => Promise<T>): Promise<T> {
    return this.home.shownIn(thread, this.name, body);
  }

  /** @internal The disk does not close before the answer was called. */
  hold(): () => void {
    this.#assertOpen();
    this.#pending++;
    return () => this.#release();
  }

  #release(): void {
    if (--this.#pending > 0) return;
    this.#idle?.open();
    this.#idle = undefined;
  }

  async #close(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = (step: Promise<unknown>): Promise<unknown> => step.catch((error) => failures.push(error));
    await Promise.all([...this.#dependents].map((stop) => attempt(stop())));
    while (this.#pending > 0) {
      this.#idle ??= new Gate();
      await this.#idle.promise;
    }
    await attempt(this.#channel.close());
    await this.home.closeGuests();
    // A thread that has stopped has closed its disks itself.
    const closing = this.home.thread.call('close', { disk: this.id }).catch((error: unknown) => {
      if (!(error instanceof BlockError && error.errno === Errno.ESHUTDOWN)) throw error;
    });
    await attempt(closing);
    for (const use of this.home.uses) await attempt(use.release());
    if (failures.length > 0) throw failures[0];
  }

  #assertOpen(): void {
    if (this.#closing) throw new BlockError(Errno.EBADF, `Could not use '${this.name}': it is closed`);
  }

  #call<M extends Method>(method: M, args: MethodArgs<M>, signal?: AbortSignal): Promise<MethodResult<M>> {
    return this.#io(() => this.home.call(method, args), signal);
  }

  /** Runs one request; `close` waits for it even when the caller has given it up. */
  async #io<T>(request: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    this.#assertOpen();
    signal?.throwIfAborted();
    this.#pending++;
    const running = request().finally(() => this.#release());
    return abortable(running, signal);
  }

  /** Runs `io` at `position`; at the current one, in turn with others, and moves it. */
  async #at(position: Position, io: (at: Offset) => Promise<Bytes>, signal: AbortSignal | undefined): Promise<Bytes> {
    if (!isCurrent(position)) {
      const at = offsetOf(position as number | bigint, 'position');
      return this.#io(() => io(at), signal);
    }
    const inTurn = async (): Promise<Bytes> => {
      using _turn = await this.#cursorLock.lock();
      const done = await io(this.#cursor);
      this.#cursor += done;
      return done;
    };
    return this.#io(inTurn, signal);
  }

  #read(views: readonly Uint8Array[], position: Position, signal: AbortSignal | undefined): Promise<Bytes> {
    const total = views.reduce((sum, view) => sum + view.length, 0);
    const read = async (at: Offset): Promise<Bytes> =>
      total === 0 ? 0 : readInto(this.#channel, views, at, { signal });
    return this.#at(position, read, signal);
  }

  #write(views: readonly Uint8Array[], position: Position, signal: AbortSignal | undefined): Promise<Bytes> {
    const total = views.reduce((sum, view) => sum + view.length, 0);
    const write = async (at: Offset): Promise<Bytes> => {
      if (total > 0) await writeFrom(this.#channel, views, at, { signal });
      return total;
    };
    return this.#at(position, write, signal);
  }

  async #range(
    method: 'zero' | 'discard',
    position: number | bigint,
    length: number | bigint,
    flags: number,
    options: Abortable,
  ): Promise<void> {
    const message = { disk: this.id, at: offsetOf(position, 'position'), length: offsetOf(length, 'length'), flags };
    await this.#call(method, message, options.signal);
  }
}
