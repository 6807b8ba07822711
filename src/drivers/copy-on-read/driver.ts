/**
 * copy-on-read: a filter that makes an image local as it is read. What the active layer of `file` does not hold is
 * copied into it first; block/ does that (copy-up.ts). A read fails where its copy cannot be written, as in QEMU.
 * Copies are flushed in the background, so that a program that is killed does not lose all of them.
 */
import { spawn } from '../../aio/op.ts';
import type { Timer } from '../../aio/timers.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Nanoseconds, Offset } from '../../base/units.ts';
import type { Child, Driver, DriverNode, Mapping, MapReason, MaybePromise, OpenContext } from '../../block/driver.ts';

export interface CopyOnReadOptions {
  /** Node-name of the lowest layer that is copied from. Default: all of them. */
  readonly bottom?: string;
}

/** From a copy to the flush that saves it, and those that come meanwhile. */
const SAVE_AFTER: Nanoseconds = 5e9;

class CopyOnReadNode implements DriverNode {
  readonly #file: Child;
  readonly #bottom: string | undefined;
  readonly #quiet: () => void;
  readonly #timer: Timer;
  /** Something was copied since the last flush of our own began. */
  #unsaved = false;
  #saving = false;
  #drained = false;

  constructor({ aio, quiet }: OpenContext, file: Child, bottom: string | undefined) {
    this.#file = file;
    this.#bottom = bottom;
    this.#quiet = quiet;
    this.#timer = aio.timer(() => spawn(this.#save()), 'copy-on-read flush');
  }

  get length(): Bytes {
    return this.#file.length;
  }

  /** A read of what has to be copied comes to `preadv`; all else is the child's. */
  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): MaybePromise<void> {
    if (why !== 'read') {
      out.data(want, this.#file, at);
      return undefined;
    }
    const held = this.#file.held(at, want);
    if (typeof held !== 'number') return held.then((length) => this.#answer(length, at, out));
    this.#answer(held, at, out);
    return undefined;
  }

  #answer(held: number, at: Offset, out: Mapping): void {
    if (held > 0) out.data(held, this.#file, at);
    else out.other('opaque', -held);
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    await this.#copyUp(at, iov.length);
    await this.#file.read(at, iov);
  }

  /** What will be read soon is copied now. */
  async prefetch(at: Offset, length: Bytes): Promise<void> {
    try {
      await this.#copyUp(at, length);
    } catch (error) {
      // The read will say so.
      if (!(error instanceof BlockError)) throw error;
    }
  }

  async #copyUp(at: Offset, length: Bytes): Promise<void> {
    const file = this.#file;
    try {
      // A layer that has gone from the chain is 0: nothing is copied that it may have been to protect.
      await file.copyUp(at, length, this.#bottom === undefined ? undefined : file.layer(this.#bottom));
    } finally {
      this.#unsaved = true;
      this.#saveLater();
    }
  }

  #saveLater(): void {
    if (this.#unsaved && !this.#saving && !this.#drained && !this.#timer.armed) this.#timer.armIn(SAVE_AFTER);
  }

  async #save(): Promise<void> {
    this.#unsaved = false;
    this.#saving = true;
    try {
      await this.#file.flush();
    } catch (error) {
      // Whoever flushes the disk will be told.
      if (!(error instanceof BlockError)) throw error;
    } finally {
      this.#saving = false;
      this.#quiet();
      this.#saveLater();
    }
  }

  drainBegin(): void {
    this.#drained = true;
    this.#timer.cancel();
  }

  drainEnd(): void {
    this.#drained = false;
    this.#saveLater();
  }

  drainBusy(): boolean {
    return this.#saving;
  }

  grew(_end: Offset): void {}

  /** What is below writes all that it has. */
  inactivate(): Record<string, unknown> {
    this.#unsaved = false;
    return {};
  }

  close(): void {
    this.#unsaved = false;
    this.#timer.cancel();
  }

  truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    return this.#file.truncate(length, prealloc);
  }
}

export const copyOnReadDriver: Driver<CopyOnReadOptions> = {
  name: 'copy-on-read',
  role: 'filter',
  children: { file: 'filtered' },
  copiesUp: true,
  options: {
    bottom: { type: 'string', help: 'node-name of the lowest layer that is copied from (default: all are)' },
  },
  async open(context: OpenContext, { bottom }: CopyOnReadOptions): Promise<DriverNode> {
    const file = await context.openChild('file', 'filtered');
    if (!file) throw new BlockError(Errno.EINVAL, "Could not open a 'copy-on-read' node: option 'file' is missing");
    if (bottom !== undefined && file.layer(bottom) < 2) {
      const why = `bottom '${bottom}' is no layer below the one that is copied to`;
      throw new BlockError(Errno.EINVAL, `Could not open a 'copy-on-read' node: ${why}`);
    }
    return new CopyOnReadNode(context, file, bottom);
  },
};
