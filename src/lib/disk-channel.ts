/** A disk's requests from the program's own thread: a handle, opened with the first of them, and the thread's arena. */
import { Errno } from '../base/errors.ts';
import { BlkHandle } from '../channel/handle.ts';
import type { BlkDescriptor } from '../channel/layout.ts';
import type { IOThread } from './iothread.ts';
import { type Arena, ArenaShare } from './memory.ts';

export interface OpenChannel {
  readonly handle: BlkHandle;
  /** Registered with the handle. */
  readonly arena: Arena;
  /** The disk's part of it. */
  readonly share: ArenaShare;
}

/** What it needs of its disk. */
export interface ChannelDisk {
  readonly id: number;
  readonly iothread: IOThread;
  descriptor(): Promise<BlkDescriptor>;
}

export class DiskChannel {
  readonly #disk: ChannelDisk;
  #opening: Promise<OpenChannel> | undefined;

  constructor(disk: ChannelDisk) {
    this.#disk = disk;
  }

  open(): Promise<OpenChannel> {
    this.#opening ??= this.#open();
    return this.#opening;
  }

  async #open(): Promise<OpenChannel> {
    // It stays the memory of the thread that the disk is in now, wherever the disk goes.
    const { arena } = this.#disk.iothread;
    const handle = BlkHandle.attach(await this.#disk.descriptor());
    handle.register(arena.buffer);
    return { handle, arena, share: new ArenaShare() };
  }

  /** Runs one request. A thread that dies under it says why once it is gone; the handle only knows that it is. */
  async run(request: () => Promise<void>): Promise<void> {
    try {
      await request();
    } catch (error) {
      const { handle } = await this.open();
      if (error === handle.end && handle.end?.errno === Errno.EIO)
        await this.#disk.iothread.call('stat', { disk: this.#disk.id });
      throw error;
    }
  }

  /** Nothing may be in flight. */
  async close(): Promise<void> {
    const opened = await this.#opening?.catch(() => undefined);
    await opened?.handle.close();
  }
}
