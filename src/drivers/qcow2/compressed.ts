/**
 * Compressed clusters: reading them through a small cache of what was decompressed last, and making them. At most four
 * are worked on at a time (SEMANTICS T4); the others wait, and so memory is bounded.
 */

import type { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import { assertCodec, type CodecDone, type CompressionType, compress, decompress } from '../../codec/compression.ts';
import { kernelBytes } from './metadata-io.ts';

/** SEMANTICS T4. */
const TASKS = 4;
/** Neighbours in the file are read at once, up to this. */
const READ_BYTES = 512 * KiB;
/** Memory of so many such reads is kept: 8 MiB. */
const READS_KEPT = 16;
/** Decompressed bytes that are kept; at least one cluster for each task. */
const CACHE_BYTES = 4 * MiB;

interface Entry {
  readonly offset: Offset;
  readonly length: Bytes;
  readonly plain: Promise<Uint8Array>;
}

/** What is wanted of a compressed cluster: `iov.length` bytes from `inside` on go into `iov`. */
export interface Wanted {
  /** Of its compressed bytes in the file. */
  readonly offset: Offset;
  readonly length: Bytes;
  readonly inside: Bytes;
  readonly iov: Iov;
}

/** A compressed cluster whose bytes are in memory, and where its plain ones go. */
interface Packed {
  readonly offset: Offset;
  readonly packed: Uint8Array;
  readonly plain: Uint8Array;
}

/** One block to compress or decompress. */
interface Task {
  readonly start: (done: CodecDone) => void;
  readonly ended: CodecDone;
}

export interface CompressedOptions {
  readonly aio: AioContext;
  readonly file: Child;
  readonly clusterSize: Bytes;
  /** As in the header. */
  readonly type: 0 | 1;
}

export class CompressedClusters {
  readonly #options: CompressedOptions;
  readonly #type: CompressionType;
  readonly #entriesMax: number;
  /** Used last comes last. A few: looking through them is cheap. */
  readonly #entries: Entry[] = [];
  /** In the order in which they begin. */
  readonly #waiting = new Fifo<Task>();
  /** Memory for compressed bytes, of a cluster each and of several: used again, since what is new has to be cleared. */
  readonly #small: Uint8Array[] = [];
  readonly #large: Uint8Array[] = [];
  #running = 0;
  #starting = false;

  constructor(options: CompressedOptions) {
    this.#options = options;
    this.#type = options.type === 0 ? 'zlib' : 'zstd';
    this.#entriesMax = Math.min(64, Math.max(TASKS, CACHE_BYTES / options.clusterSize));
  }

  /** Clusters that are being worked on. */
  get running(): number {
    return this.#running;
  }

  /** Fills what is wanted. EIO for damaged clusters. Nothing is in use any more when it ends, well or not. */
  async read(wanted: readonly Wanted[]): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let first = 0; first < wanted.length; ) {
      const count = this.#neighbours(wanted, first);
      parts.push(count === 0 ? this.#readKept(wanted[first]!) : this.#readRun(wanted.slice(first, first + count)));
      first += Math.max(1, count);
    }
    const failure = (await Promise.allSettled(parts)).find(({ status }) => status === 'rejected');
    if (failure) throw (failure as PromiseRejectedResult).reason;
  }

  /** How many from `first` on are read at once, and not kept: whole clusters that follow each other in the file. */
  #neighbours(wanted: readonly Wanted[], first: number): number {
    const begin = wanted[first]!.offset;
    let count = 0;
    for (let end = begin; first + count < wanted.length; count++) {
      const { offset, length, iov } = wanted[first + count]!;
      // Whole sectors are read: the next cluster may begin within the last one.
      const follows = count === 0 || (offset <= end && offset >= begin);
      if (!follows || offset + length - begin > READ_BYTES || !this.#isDirect(offset, iov)) break;
      end = Math.max(end, offset + length);
    }
    return count;
  }

  /** Goes where it is wanted, and is not kept. */
  #isDirect(offset: Offset, iov: Iov): boolean {
    return (
      iov.count === 1 && iov.length === this.#options.clusterSize && !this.#entries.some((e) => e.offset === offset)
    );
  }

  async #readKept({ offset, length, inside, iov }: Wanted): Promise<void> {
    const plain = await this.#plain(offset, length);
    iov.copyFrom(plain.subarray(inside, inside + iov.length));
  }

  async #readRun(run: readonly Wanted[]): Promise<void> {
    const from = run[0]!.offset;
    const bytes = Math.max(...run.map(({ offset, length }) => offset + length)) - from;
    const memory = this.#large.pop() ?? kernelBytes(READ_BYTES);
    try {
      const bytesOf = await this.#readPacked(from, memory.subarray(0, bytes));
      await this.#unpack(
        run.map(({ offset, length, iov }) => {
          const at = offset - from;
          return { offset, packed: bytesOf.subarray(at, at + length), plain: iov.run(0) };
        }),
      );
    } finally {
      if (this.#large.length < READS_KEPT) this.#large.push(memory);
    }
  }

  /** The compressed bytes of a cluster, to be given back; undefined where they would not be fewer. */
  async pack(plain: Uint8Array): Promise<Uint8Array | undefined> {
    assertCodec(this.#type);
    const memory = this.#small.pop() ?? kernelBytes(plain.length - 1);
    const gate = new Gate<number>();
    this.#begin({ start: (done) => compress(this.#type, plain, memory, done), ended: (length) => gate.open(length) });
    const length = await gate.promise;
    if (length >= 0) return memory.subarray(0, length);
    this.giveBack(memory);
    return undefined;
  }

  /** What {@link pack} answered is not needed any more. */
  giveBack(packed: Uint8Array): void {
    if (this.#small.length * this.#options.clusterSize < CACHE_BYTES) this.#small.push(new Uint8Array(packed.buffer));
  }

  /** The range of the file is going to hold something else. */
  forget(at: Offset, length: Bytes): void {
    for (let i = this.#entries.length - 1; i >= 0; i--) {
      const entry = this.#entries[i]!;
      if (entry.offset < at + length && entry.offset + entry.length > at) this.#entries.splice(i, 1);
    }
  }

  #plain(offset: Offset, length: Bytes): Promise<Uint8Array> {
    const found = this.#entries.findIndex((entry) => entry.offset === offset && entry.length === length);
    const entry = found < 0 ? this.#load(offset, length) : this.#entries.splice(found, 1)[0]!;
    this.#entries.push(entry);
    if (this.#entries.length > this.#entriesMax) this.#entries.shift();
    return entry.plain;
  }

  #load(offset: Offset, length: Bytes): Entry {
    const entry = { offset, length, plain: this.#decompress(offset, length) };
    entry.plain.catch(() => {
      const at = this.#entries.indexOf(entry);
      if (at >= 0) this.#entries.splice(at, 1);
    });
    return entry;
  }

  async #decompress(offset: Offset, length: Bytes): Promise<Uint8Array> {
    const plain = kernelBytes(this.#options.clusterSize);
    await this.#unpack([{ offset, packed: await this.#readPacked(offset, kernelBytes(length)), plain }]);
    return plain;
  }

  /** Reads from the file; zeroes beyond its end. */
  async #readPacked(offset: Offset, packed: Uint8Array): Promise<Uint8Array> {
    const { aio, file } = this.#options;
    if (!Number.isSafeInteger(offset + packed.length) || offset >= file.length) {
      throw new BlockError(Errno.EIO, `Could not read a compressed cluster: ${offset} is beyond the end of the file`);
    }
    const stop = file.point('read_compressed');
    if (stop !== undefined) await stop;
    await file.read(offset, Iov.of(aio.backend.memory(packed)));
    return packed;
  }

  /** All of them have ended when it does. A promise for each would cost a good part of the decompressing. */
  async #unpack(clusters: readonly Packed[]): Promise<void> {
    assertCodec(this.#type);
    const gate = new Gate<readonly Offset[]>();
    const damaged: Offset[] = [];
    let left = clusters.length;
    for (const { offset, packed, plain } of clusters) {
      const ended: CodecDone = (length) => {
        if (length !== plain.length) damaged.push(offset);
        left--;
        if (left === 0) gate.open(damaged);
      };
      this.#begin({ start: (done) => decompress(this.#type, packed, plain, done), ended });
    }
    const [first] = await gate.promise;
    if (first === undefined) return;
    throw new BlockError(Errno.EIO, `Could not read a compressed cluster: its bytes at ${first} are damaged`);
  }

  #begin(task: Task): void {
    this.#waiting.push(task);
    this.#beginMore();
  }

  #beginMore(): void {
    // Small blocks end within their start: the loop below goes on with the next one.
    if (this.#starting) return;
    this.#starting = true;
    while (this.#running < TASKS) {
      const task = this.#waiting.shift();
      if (task === undefined) break;
      this.#running++;
      task.start((length) => {
        this.#running--;
        task.ended(length);
        this.#beginMore();
      });
    }
    this.#starting = false;
  }
}
