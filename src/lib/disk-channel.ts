/** A disk's requests from the program's own thread: a handle, opened with the first of them, and the thread's arena. */
import { Errno } from '../base/errors.ts';
import { descriptorOf, newOffer } from '../channel/descriptor.ts';
import { BlkHandle } from '../channel/handle.ts';
import type { BlkDescriptor } from '../channel/layout.ts';
import type { IOThread } from './iothread.ts';
import type { Arena } from './memory.ts';

export interface OpenChannel {
  readonly handle: BlkHandle;
  /** Registered with the handle. */
  readonly arena: Arena;
}

export class DiskChannel {
  readonly #thread: IOThread;
  readonly #disk: number;
  #opening: Promise<OpenChannel> | undefined;

  constructor(thread: IOThread, disk: number) {
    this.#thread = thread;
    this.#disk = disk;
  }

  /** For one more thread. */
  async descriptor(): Promise<BlkDescriptor> {
    const { offer, port } = newOffer();
    const identity = await this.#thread.call('share', { disk: this.#disk, offer }, [offer.port]);
    return descriptorOf(identity, offer.words, port);
  }

  open(): Promise<OpenChannel> {
    this.#opening ??= this.#open();
    return this.#opening;
  }

  async #open(): Promise<OpenChannel> {
    const handle = BlkHandle.attach(await this.descriptor());
    const { arena } = this.#thread;
    handle.register(arena.buffer);
    return { handle, arena };
  }

  /** Runs one request. A thread that dies under it says why once it is gone; the handle only knows that it is. */
  async run(request: () => Promise<void>): Promise<void> {
    try {
      await request();
    } catch (error) {
      const { handle } = await this.open();
      if (error === handle.end && handle.end?.errno === Errno.EIO)
        await this.#thread.call('stat', { disk: this.#disk });
      throw error;
    }
  }

  /** Nothing may be in flight. */
  async close(): Promise<void> {
    const opened = await this.#opening?.catch(() => undefined);
    await opened?.handle.close();
  }
}
