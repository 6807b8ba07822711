/**
 * Compressed clusters: reading them through a small cache of what was decompressed last, and making them. At most four
 * are worked on at a time (SEMANTICS T4); the others wait, and so memory is bounded.
 */

import { CoQueue } from '../../aio/co-queue.ts';
import type { AioContext } from '../../aio/context.ts';
import { Gate } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import { type CompressionType, compress, decompress } from '../../codec/compression.ts';
import { kernelBytes } from './metadata-io.ts';

/** SEMANTICS T4. */
const TASKS = 4;
/** Decompressed bytes that are kept; at least one cluster for each task. */
const CACHE_BYTES = 4 * MiB;

interface Entry {
  readonly offset: Offset;
  readonly length: Bytes;
  readonly plain: Promise<Uint8Array>;
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
  readonly #room = new CoQueue();
  #running = 0;

  constructor(options: CompressedOptions) {
    this.#options = options;
    this.#type = options.type === 0 ? 'zlib' : 'zstd';
    this.#entriesMax = Math.min(64, Math.max(TASKS, CACHE_BYTES / options.clusterSize));
  }

  /** Clusters that are being worked on. */
  get running(): number {
    return this.#running;
  }

  /** Fills `iov` from byte `inside` of the cluster whose compressed bytes are at `offset`. EIO for damaged ones. */
  async read(offset: Offset, length: Bytes, inside: Bytes, iov: Iov): Promise<void> {
    const plain = await this.#plain(offset, length);
    iov.copyFrom(plain.subarray(inside, inside + iov.length));
  }

  /** The compressed bytes of a cluster; undefined where they would not be fewer. */
  async pack(plain: Uint8Array): Promise<Uint8Array | undefined> {
    const packed = kernelBytes(plain.length - 1);
    const length = await this.#task((done) => compress(this.#type, plain, packed, done));
    return length < 0 ? undefined : packed.subarray(0, length);
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
    const { aio, file, clusterSize } = this.#options;
    if (!Number.isSafeInteger(offset + length) || offset >= file.length) {
      throw new BlockError(Errno.EIO, `Could not read a compressed cluster: ${offset} is beyond the end of the file`);
    }
    const packed = kernelBytes(length);
    const plain = new Uint8Array(clusterSize);
    await file.read(offset, Iov.of(aio.backend.memory(packed)));
    const result = await this.#task((done) => decompress(this.#type, packed, plain, done));
    if (result === clusterSize) return plain;
    throw new BlockError(Errno.EIO, `Could not read a compressed cluster: its bytes at ${offset} are damaged`);
  }

  async #task(start: (done: (length: number) => void) => void): Promise<number> {
    while (this.#running >= TASKS) await this.#room.wait();
    this.#running++;
    try {
      const gate = new Gate<number>();
      start((length) => gate.open(length));
      return await gate.promise;
    } finally {
      this.#running--;
      this.#room.wakeOne();
    }
  }
}
