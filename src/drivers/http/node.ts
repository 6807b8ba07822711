/**
 * http and https: a file on a web server, read-only. Callback style: a read becomes range requests whose chunks are
 * copied to where the reader wants them, as they come. Everything runs in the node's home thread: Node's own sockets
 * beside the ring's loop.
 */
import type { AioContext } from '../../aio/context.ts';
import { type AioOp, Gate } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { forCopying, type Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB, MiB, type Offset } from '../../base/units.ts';
import type { DriverNode, Limits, OpenContext } from '../../block/driver.ts';
import type { Transport } from './exchange.ts';
import { HttpTransport } from './http-transport.ts';
import { DirectPart, ReadJob } from './read-job.ts';
import { Readahead } from './readahead.ts';
import { type RangeSink, Remote } from './remote.ts';
import { type HttpOptions, type HttpSettings, type Protocol, settingsOf } from './settings.ts';

/** What the first request asks for, and what is kept: the header of a qcow2 image, and the L1 table where this and
 *  other programs put it (clusters 0 to 3 of 64 KiB). */
const HEAD_BYTES = 256 * KiB;
/** A larger read is several requests, side by side. */
const PIECE = MiB;

/** Takes in the first bytes. */
class HeadSink implements RangeSink {
  readonly bytes = new Uint8Array(HEAD_BYTES);
  readonly ended = new Gate();

  take(chunk: Uint8Array, from: Bytes): void {
    this.bytes.set(chunk, from);
  }

  done(failure: BlockError | null): void {
    if (failure === null) this.ended.open();
    else this.ended.fail(failure);
  }
}

class HttpNode implements DriverNode {
  readonly limits: Partial<Limits> = { optimal: 64 * KiB };
  readonly readOnly = true;
  readonly length: Bytes;
  readonly #aio: AioContext;
  readonly #settings: HttpSettings;
  readonly #remote: Remote;
  readonly #head: Uint8Array;
  readonly #readahead: Readahead;

  constructor(aio: AioContext, settings: HttpSettings, remote: Remote, head: Uint8Array) {
    this.#aio = aio;
    this.#settings = settings;
    this.#remote = remote;
    this.#head = head;
    this.length = remote.length;
    this.#readahead = new Readahead(aio, remote, settings.readahead, settings.connections, head.length);
  }

  readNow(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean {
    if (this.#remote.broken !== null || at + length > this.#head.length) return false;
    forCopying(memory).set(this.#head.subarray(at, at + length), offset);
    return true;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    const job = new ReadJob(this.#aio, op, iov, at);
    const { broken } = this.#remote;
    if (broken === null) this.#plan(job, at, iov.length);
    job.end(broken);
  }

  /** Begins the parts of a read. */
  #plan(job: ReadJob, at: Offset, length: Bytes): void {
    const end = at + length;
    let next = at;
    while (next < end) {
      if (next < this.#head.length) {
        const part = this.#head.subarray(next, Math.min(end, this.#head.length));
        job.put(part, next);
        next += part.length;
        continue;
      }
      const served = this.#readahead.serve(job, next, end - next);
      if (served === 0) {
        const until = Math.min(end, next + PIECE, this.#readahead.nextAfter(next));
        this.#remote.fetch(next, until - next, new DirectPart(job, next), true);
        next = until;
      } else next += served;
    }
    this.#readahead.note(at, length);
  }

  info(): Record<string, unknown> {
    return { filename: this.#settings.shown, length: this.length };
  }

  inactivate(): Record<string, unknown> {
    return {};
  }

  drainBegin(): void {
    this.#readahead.hold();
  }

  drainEnd(): void {
    this.#readahead.release();
  }

  drainBusy(): boolean {
    return this.#remote.busy;
  }

  async close(): Promise<void> {
    this.#remote.close();
  }
}

/** Throws BlockError. */
export async function openHttp(context: OpenContext, options: HttpOptions, protocol: Protocol): Promise<DriverNode> {
  const settings = settingsOf(options, protocol);
  if (!context.readOnly && !context.common['auto-read-only']) {
    const why = `images on web servers are read-only: option 'read-only' is missing`;
    throw new BlockError(Errno.EROFS, `Could not open '${settings.shown}': ${why}`, { where: { op: 'open' } });
  }
  const remote = new Remote(context.aio, settings, await transportOf(settings), () => context.quiet());
  try {
    const head = new HeadSink();
    remote.fetch(0, HEAD_BYTES, head, true);
    await head.ended.promise;
    return new HttpNode(context.aio, settings, remote, head.bytes.subarray(0, Math.min(HEAD_BYTES, remote.length)));
  } catch (error) {
    remote.close();
    const noRanges = error instanceof BlockError && error.errno === Errno.ENOTSUP;
    if (!settings.download || !noRanges) throw error;
    const { openSpooled } = await import('./spool.ts');
    return await openSpooled(context, settings, await transportOf(settings));
  }
}

async function transportOf(settings: HttpSettings): Promise<Transport> {
  if (/^https?:$/.test(settings.url.protocol)) return new HttpTransport(settings);
  return new (await import('./ftp-transport.ts')).FtpTransport(settings, (await import('basic-ftp')).Client);
}
