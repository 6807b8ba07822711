/** Streams over a disk: node's own, and the web's. */
import { Readable, Writable } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB, type Offset } from '../base/units.ts';
import type { Abortable } from './abort.ts';
import { offsetOf } from './disk-args.ts';

const DEFAULT_CHUNK: Bytes = 256 * KiB;

/** The disk as streams need it. */
export interface Streamable {
  readonly size: Bytes;
  read(buffer: Uint8Array, options: { readonly position: Offset } & Abortable): Promise<{ readonly bytesRead: Bytes }>;
  writev(buffers: readonly Uint8Array[], position: Offset): Promise<unknown>;
  flush(): Promise<void>;
  close(): Promise<void>;
}

export interface StreamOptions extends Abortable {
  /** First byte; default 0. */
  readonly start?: number | bigint | undefined;
  /** How much is read or buffered at a time, in bytes; default 256 KiB. */
  readonly highWaterMark?: number | undefined;
  /** Close the disk at the end of the stream; default false. */
  readonly autoClose?: boolean | undefined;
}

export interface ReadStreamOptions extends StreamOptions {
  /** Last byte, included, as node has it; default the end of the disk. */
  readonly end?: number | bigint | undefined;
}

type Callback = (error?: Error | null) => void;

function chunkOf(options: StreamOptions): Bytes {
  const chunk = offsetOf(options.highWaterMark ?? DEFAULT_CHUNK, 'highWaterMark');
  if (chunk === 0) throw new BlockError(Errno.EINVAL, 'highWaterMark: 0 is not a positive number of bytes');
  return chunk;
}

/** start and the byte after the last one. */
function rangeOf(options: ReadStreamOptions): { at: Offset; end: Offset } {
  const at = offsetOf(options.start ?? 0, 'start');
  const end = options.end === undefined || options.end === Infinity ? Infinity : offsetOf(options.end, 'end') + 1;
  if (end < at) throw new BlockError(Errno.ERANGE, `end: ${options.end} is before start, ${at}`);
  return { at, end };
}

export class DiskReadStream extends Readable {
  /** Bytes read so far. */
  bytesRead = 0;
  readonly #disk: Streamable;
  readonly #end: Offset;
  readonly #chunk: Bytes;
  readonly #autoClose: boolean;
  readonly #signal: AbortSignal | undefined;
  #at: Offset;

  constructor(disk: Streamable, options: ReadStreamOptions = {}) {
    const chunk = chunkOf(options);
    super({ highWaterMark: chunk, ...(options.signal ? { signal: options.signal } : {}) });
    const { at, end } = rangeOf(options);
    this.#disk = disk;
    this.#at = at;
    this.#end = end;
    this.#chunk = chunk;
    this.#autoClose = options.autoClose ?? false;
    this.#signal = options.signal;
  }

  override _read(): void {
    void this.#pull();
  }

  async #pull(): Promise<void> {
    const want = Math.min(this.#chunk, Math.min(this.#end, this.#disk.size) - this.#at);
    if (want <= 0) {
      this.push(null);
      return;
    }
    try {
      const buffer = new Uint8Array(want);
      const { bytesRead } = await this.#disk.read(buffer, { position: this.#at, signal: this.#signal });
      this.#at += bytesRead;
      this.bytesRead += bytesRead;
      this.push(bytesRead === 0 ? null : buffer.subarray(0, bytesRead));
    } catch (error) {
      this.destroy(error as Error);
    }
  }

  override _destroy(error: Error | null, callback: Callback): void {
    if (!this.#autoClose) callback(error);
    else {
      this.#disk.close().then(
        () => callback(error),
        (failure: Error) => callback(error ?? failure),
      );
    }
  }
}

export class DiskWriteStream extends Writable {
  /** Bytes written so far. */
  bytesWritten = 0;
  readonly #disk: Streamable;
  readonly #end: Offset;
  readonly #autoClose: boolean;
  #at: Offset;
  /** The write under way has ended, well or not. */
  #written: Promise<unknown> = Promise.resolve();

  constructor(disk: Streamable, options: ReadStreamOptions = {}) {
    super({
      highWaterMark: chunkOf(options),
      decodeStrings: true,
      ...(options.signal ? { signal: options.signal } : {}),
    });
    const { at, end } = rangeOf(options);
    this.#disk = disk;
    this.#at = at;
    this.#end = end;
    this.#autoClose = options.autoClose ?? false;
  }

  override _write(chunk: Uint8Array, _encoding: string, callback: Callback): void {
    this.#put([chunk], callback);
  }

  override _writev(chunks: { readonly chunk: Uint8Array }[], callback: Callback): void {
    this.#put(
      chunks.map(({ chunk }) => chunk),
      callback,
    );
  }

  #put(chunks: readonly Uint8Array[], callback: Callback): void {
    const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    const at = this.#at;
    if (at + length > this.#end) {
      callback(
        new BlockError(Errno.ENOSPC, `Could not write ${length} bytes at ${at}: the stream ends at ${this.#end}`),
      );
      return;
    }
    this.#at += length;
    const done = (): void => {
      this.bytesWritten += length;
      callback();
    };
    this.#written = this.#disk.writev(chunks, at).then(done, callback);
  }

  /** Ends once everything is on stable storage. */
  override _final(callback: Callback): void {
    this.#written = this.#disk.flush().then(() => callback(), callback);
  }

  /** 'close' comes when nothing is being written any more: the chunks' memory and the disk are the caller's again. */
  override _destroy(error: Error | null, callback: Callback): void {
    const ended = this.#autoClose ? this.#written.then(() => this.#disk.close()) : this.#written;
    ended.then(
      () => callback(error),
      (failure: Error) => callback(error ?? failure),
    );
  }
}

/** A web stream of bytes; `start` and `end` as in {@link ReadStreamOptions}. */
export function webStream(disk: Streamable, options: ReadStreamOptions = {}): ReadableStream<Uint8Array> {
  const range = rangeOf(options);
  const chunk = chunkOf(options);
  let at = range.at;
  const read = async (buffer: Uint8Array): Promise<Bytes> => {
    try {
      return buffer.length === 0 ? 0 : (await disk.read(buffer, { position: at, signal: options.signal })).bytesRead;
    } catch (error) {
      if (options.autoClose) await disk.close().catch(() => undefined);
      throw error;
    }
  };
  return new ReadableStream({
    type: 'bytes',
    autoAllocateChunkSize: chunk,
    async pull(controller) {
      const request = controller.byobRequest;
      const target = request?.view;
      const limit = target?.byteLength ?? chunk;
      const want = Math.min(limit, Math.min(range.end, disk.size) - at);
      // The view may be taken away while we wait, when the reader gives up: so read beside it.
      const buffer = new Uint8Array(Math.max(want, 0));
      const bytesRead = await read(buffer);
      at += bytesRead;
      if (bytesRead === 0) {
        controller.close();
        request?.respond(0);
      } else if (request && target) {
        new Uint8Array(target.buffer, target.byteOffset, bytesRead).set(buffer.subarray(0, bytesRead));
        request.respond(bytesRead);
      } else {
        controller.enqueue(buffer.subarray(0, bytesRead));
      }
      if (bytesRead === 0 && options.autoClose) await disk.close();
    },
    async cancel() {
      if (options.autoClose) await disk.close();
    },
  });
}
