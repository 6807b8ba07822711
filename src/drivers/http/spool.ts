/**
 * A file of a server without ranges: all of it is fetched before the node is there, into a temporary file without a
 * name that goes with the node. Memory is a chunk; what is spooled has the length that the server announced.
 */
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AioFile } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { type AioOp, Gate } from '../../aio/op.ts';
import { BlockError, errnoOf, errnoText } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, MAX_OFFSET, type Offset } from '../../base/units.ts';
import type { DriverNode, OpenContext } from '../../block/driver.ts';
import type { Transport } from './exchange.ts';
import { type RangeFetch, type RangeSink, Remote } from './remote.ts';
import type { HttpSettings } from './settings.ts';

/** Puts what comes into a file. */
class SpoolSink implements RangeSink {
  readonly ended = new Gate();
  readonly #aio: AioContext;
  readonly #fd: number;
  readonly #cancel: () => void;
  #failure: unknown;

  constructor(aio: AioContext, fd: number, cancel: () => void) {
    this.#aio = aio;
    this.#fd = fd;
    this.#cancel = cancel;
  }

  /** The page cache takes it at once; a queue of chunks would have no bound. */
  take(chunk: Uint8Array, from: Bytes): void {
    if (this.#failure !== undefined) return;
    try {
      for (let done = 0; done < chunk.length; ) {
        done += writeSync(this.#fd, chunk, done, chunk.length - done, from + done);
      }
    } catch (error) {
      this.#failure = error;
      // Not under the fetch that is giving this chunk.
      this.#aio.oneshot(() => {
        this.#cancel();
        this.ended.fail(error);
      }, 'http download');
    }
  }

  done(failure: BlockError | null): void {
    if (this.#failure !== undefined) return;
    if (failure === null) this.ended.open();
    else this.ended.fail(failure);
  }
}

class SpooledNode implements DriverNode {
  readonly limits = {};
  readonly readOnly = true;
  readonly length: Bytes;
  readonly #file: AioFile;
  readonly #shown: string;

  constructor(file: AioFile, length: Bytes, shown: string) {
    this.#file = file;
    this.length = length;
    this.#shown = shown;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    this.#file.read(op, iov, at);
  }

  info(): Record<string, unknown> {
    return { filename: this.#shown, length: this.length, downloaded: true };
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** Throws BlockError. */
export async function openSpooled(
  context: OpenContext,
  settings: HttpSettings,
  transport: Transport,
): Promise<DriverNode> {
  const { aio } = context;
  const remote = new Remote(aio, settings, transport, () => context.quiet(), true);
  let folder: string | undefined;
  let fd = -1;
  try {
    folder = mkdtempSync(join(tmpdir(), 'blockplane-'));
    const path = join(folder, 'image');
    fd = openSync(path, 'wx', 0o600);
    const sink: SpoolSink = new SpoolSink(aio, fd, () => remote.cancel(fetch));
    const fetch: RangeFetch = remote.fetch(0, MAX_OFFSET, sink, true);
    await sink.ended.promise;
    const file = await aio.backend.openFile(path, { writable: false });
    return new SpooledNode(file, remote.length, settings.shown);
  } catch (error) {
    if (error instanceof BlockError) throw error;
    const errno = errnoOf(error);
    const why = `could not keep it in a temporary file: ${errnoText(errno)}`;
    throw new BlockError(errno, `Could not open '${settings.shown}': ${why}`, { where: { op: 'open' }, cause: error });
  } finally {
    remote.close();
    if (fd >= 0) closeSync(fd);
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  }
}
