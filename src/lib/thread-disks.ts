/** Disks that are open in this thread, by number. */

import { CoMutex } from '../aio/co-mutex.ts';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { everyOne } from '../base/every-step.ts';
import { type Bytes, KiB } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { BlockStatus } from '../block/status.ts';
import { ofImage } from './image-head.ts';
import type { BlockExtent, OpenMessage, OpenReply, RangeMessage, StatReply, TruncateMessage } from './messages.ts';
import { openTree } from './open-tree.ts';

/** Disks open in one thread at a time. */
const MAX_DISKS = 1024;
/** Extents in one answer about block status. */
const MAX_EXTENTS = 1024;

/** Numbers of disks are a thread's own, and stay when the disk moves. */
const NUMBERS = 2 ** 32;

interface OpenDisk {
  readonly blk: BlockBackend;
  readonly controlMutex: CoMutex;
}

export class ThreadDisks {
  readonly #context: AioContext;
  readonly #threadId: number;
  readonly #disks = new Map<number, OpenDisk>();
  #ids = 0;
  #opening = 0;

  constructor(context: AioContext, threadId: number) {
    this.#context = context;
    this.#threadId = threadId;
  }

  get count(): number {
    return this.#disks.size;
  }

  has(disk: number): boolean {
    return this.#disks.has(disk);
  }

  /** Throws EBADF for a number that is none. */
  blk(disk: number): BlockBackend {
    return this.#entry(disk).blk;
  }

  /** Takes a disk that has its number already. */
  protected take(disk: number, blk: BlockBackend): void {
    this.#disks.set(disk, { blk, controlMutex: new CoMutex('disk control') });
  }

  /** Gives up a disk that stays open elsewhere. */
  protected giveUp(disk: number): void {
    this.#disks.delete(disk);
  }

  /** A disk is about to be closed; nobody finds it any more. */
  protected async leave(_disk: number): Promise<void> {}

  /** Throws EMFILE when there is no room for one more. */
  assertRoom(name: string): void {
    if (this.#disks.size + this.#opening < MAX_DISKS) return;
    throw new BlockError(Errno.EMFILE, `Could not open '${name}': ${MAX_DISKS} disks are open in this IOThread`);
  }

  #entry(disk: number): OpenDisk {
    const entry = this.#disks.get(disk);
    if (!entry) throw new BlockError(Errno.EBADF, `Could not use disk ${disk}: it is not open`);
    return entry;
  }

  async open(message: OpenMessage): Promise<OpenReply> {
    const { name } = message;
    this.assertRoom(name);
    this.#opening++;
    try {
      return this.adopt(await openTree(this.#context, message));
    } catch (error) {
      throw ofImage(error, name);
    } finally {
      this.#opening--;
    }
  }

  /** Gives a number to a disk that is open. */
  adopt(blk: BlockBackend): OpenReply {
    const disk = this.#threadId * NUMBERS + ++this.#ids;
    this.take(disk, blk);
    const { length: size, readOnly, stats } = blk;
    return { disk, size, readOnly, nodeName: blk.root?.name ?? '', counters: stats.words };
  }

  /** What changes an image as a whole, one after the other. */
  async control<T>(disk: number, body: (blk: BlockBackend) => T | Promise<T>): Promise<T> {
    const { controlMutex } = this.#entry(disk);
    using _turn = await controlMutex.lock();
    return await body(this.blk(disk));
  }

  async close(disk: number): Promise<void> {
    const { blk, controlMutex } = this.#entry(disk);
    this.#disks.delete(disk);
    using _turn = await controlMutex.lock();
    await this.leave(disk);
    await blk.close();
  }

  /** Closes all, while `others` go on, and rejects with the first failure after. */
  async closeAll(others: readonly Promise<void>[] = []): Promise<void> {
    await everyOne([...[...this.#disks.keys()].map((disk) => this.close(disk)), ...others]);
  }

  async status({ disk, at, length }: RangeMessage): Promise<BlockExtent[]> {
    const blk = this.blk(disk);
    const end = Math.min(at + length, blk.length);
    const extents: BlockExtent[] = [];
    const status = new BlockStatus();
    let offset = at;
    while (offset < end && extents.length < MAX_EXTENTS) {
      await blk.wholeExtent(offset, end - offset, status);
      const { data, zero, allocated, depth } = status;
      extents.push({ offset, length: status.length, data, zero, allocated, depth });
      offset += status.length;
    }
    return extents;
  }

  truncate({ disk, size, preallocation }: TruncateMessage): Promise<Bytes> {
    return this.control(disk, async (blk) => {
      await blk.truncate(size, preallocation);
      return blk.length;
    });
  }

  stat(disk: number): StatReply {
    const blk = this.blk(disk);
    const { alignment, optimal } = blk.limits;
    return { size: blk.length, readOnly: blk.readOnly, optimal: Math.max(optimal, alignment, 4 * KiB), alignment };
  }
}
