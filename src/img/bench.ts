/** Loading an image with requests, and how long that takes. */
import type { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { errnoText } from '../base/errors.ts';
import type { Memory } from '../base/memory.ts';
import { type Bytes, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { BlockRequest, RequestKind } from '../block/request.ts';
import type { Abortable } from '../lib/abort.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import { OpenImages } from './open-set.ts';

/** Of all requests together; where that is not enough for each, they share. */
const MEMORY_MAX: Bytes = 64 * MiB;

export interface BenchOptions extends Abortable {
  readonly image: ImageSpec;
  readonly how?: OpenHow | undefined;
  /** Default: reads. */
  readonly write?: boolean | undefined;
  readonly count: number;
  /** Requests at a time. */
  readonly depth: number;
  readonly bytes: Bytes;
  /** Where the first one is, and how far it is to the next; at the end of the disk they begin again. */
  readonly offset: Offset;
  readonly step: Bytes;
  /** What is written, 0 to 255. */
  readonly pattern?: number | undefined;
  /** A flush after so many writes; 0 for none. */
  readonly flushInterval?: number | undefined;
  /** Writes go on while a flush is under way. */
  readonly undrained?: boolean | undefined;
  /** The image is open, and the load about to begin. */
  readonly onStart?: (() => void) | undefined;
}

/** Milliseconds from the first request to the end of the last. Throws what the first that failed did with its errno. */
export async function bench(context: AioContext, options: BenchOptions): Promise<number> {
  await using images = new OpenImages(context);
  const blk = await images.open(options.image, { ...options.how, write: options.write });
  options.onStart?.();
  const began = performance.now();
  const error = await new Load(blk, options).run();
  const ms = performance.now() - began;
  options.signal?.throwIfAborted();
  if (error !== 0) throw new Error(`Failed request: ${errnoText(error)}`);
  await images.close();
  return ms;
}

class LoadRequest extends BlockRequest {
  readonly #load: Load;
  readonly place: number;

  constructor(load: Load, place: number) {
    super();
    this.#load = load;
    this.place = place;
  }

  done(error: number): void {
    this.#load.ended(this, error);
  }
}

class Load {
  readonly #blk: BlockBackend;
  readonly #options: BenchOptions;
  readonly #memory: Memory;
  readonly #free: LoadRequest[] = [];
  readonly #flush: LoadRequest;
  readonly #gate = new Gate();
  #begun = 0;
  #flying = 0;
  #flushing = false;
  #unflushed = 0;
  #offset: Offset;
  #error = 0;

  constructor(blk: BlockBackend, options: BenchOptions) {
    this.#blk = blk;
    this.#options = options;
    this.#offset = options.offset;
    const { bytes, depth, pattern = 0 } = options;
    const places = Math.max(1, Math.min(depth, Math.floor(MEMORY_MAX / Math.max(1, bytes))));
    const memory = new Uint8Array(new SharedArrayBuffer(Math.max(1, places * bytes)));
    memory.fill(pattern);
    this.#memory = blk.context.backend.memory(memory);
    this.#flush = new LoadRequest(this, 0);
    for (let i = 0; i < Math.min(depth, options.count); i++)
      this.#free.push(new LoadRequest(this, (i % places) * bytes));
  }

  /** The errno of the first failure, or 0. */
  async run(): Promise<number> {
    if (this.#options.count === 0) return 0;
    this.#begin();
    await this.#gate.promise;
    return this.#error;
  }

  #begin(): void {
    const { count, write, bytes, step, signal } = this.#options;
    while (this.#free.length > 0 && this.#begun < count && this.#error === 0 && !signal?.aborted) {
      if (this.#waitsForFlush()) break;
      const request = this.#free.pop()!;
      request.kind = write ? RequestKind.WRITE : RequestKind.READ;
      request.at = this.#offset;
      request.length = bytes;
      request.iov.reset().push(this.#memory, request.place, bytes);
      this.#begun++;
      this.#unflushed++;
      this.#flying++;
      this.#offset = (this.#offset + step) % Math.max(1, this.#blk.length);
      this.#blk.submit(request);
    }
    if (this.#flying === 0 && !this.#flushing) this.#gate.open();
  }

  /** True while nothing more may begin; begins the flush that is due. */
  #waitsForFlush(): boolean {
    const { flushInterval = 0, undrained } = this.#options;
    if (this.#flushing) return !undrained;
    if (flushInterval === 0 || this.#unflushed < flushInterval) return false;
    if (!undrained && this.#flying > 0) return true;
    this.#flushing = true;
    this.#unflushed = 0;
    this.#flush.kind = RequestKind.FLUSH;
    this.#flush.at = 0;
    this.#flush.length = 0;
    this.#blk.submit(this.#flush);
    return !undrained;
  }

  /** @internal */
  ended(request: LoadRequest, error: number): void {
    if (error !== 0 && this.#error === 0) this.#error = -error;
    if (request === this.#flush) this.#flushing = false;
    else {
      this.#flying--;
      this.#free.push(request);
    }
    this.#begin();
  }
}
