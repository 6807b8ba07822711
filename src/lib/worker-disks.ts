/** The disks of an IOThread, by number. */
import { CoMutex } from '../aio/co-mutex.ts';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { BlockStatus } from '../block/status.ts';
import { ChannelHost } from '../channel/host.ts';
import type { BlkIdentity, ChannelOffer } from '../channel/layout.ts';
import { closeGuest, openGuest } from '../channel/remote-node.ts';
import { ofImage } from './image-head.ts';
import type {
  BlockExtent,
  GuestMessage,
  OpenMessage,
  OpenReply,
  RangeMessage,
  StatReply,
  TruncateMessage,
} from './messages.ts';
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
  /** Of one that other threads use. */
  host: ChannelHost | undefined;
}

export class WorkerDisks {
  readonly #context: AioContext;
  readonly #threadId: number;
  readonly #disks = new Map<number, OpenDisk>();
  /** Disks that have their home in other threads, for users that stay in this one. */
  readonly #guests = new Map<number, BlockBackend>();
  #ids = 0;
  #opening = 0;

  constructor(context: AioContext, threadId: number) {
    this.#context = context;
    this.#threadId = threadId;
  }

  get count(): number {
    return this.#disks.size;
  }

  /** Opens a channel to a disk. */
  introduce(disk: number, offer: ChannelOffer): BlkIdentity {
    const host = this.host(disk);
    host.introduce(offer);
    return host.identity;
  }

  /** Throws EBADF for a number that is none. */
  blk(disk: number): BlockBackend {
    return this.#entry(disk).blk;
  }

  host(disk: number): ChannelHost {
    const entry = this.#entry(disk);
    entry.host ??= new ChannelHost(entry.blk);
    return entry.host;
  }

  /** What an export shows: the disk itself, or its guest here. EBADF where there is neither. */
  shown(disk: number): BlockBackend {
    return this.#guests.get(disk) ?? this.blk(disk);
  }

  guest(disk: number): BlockBackend | undefined {
    return this.#guests.get(disk);
  }

  /** This is the disk's home from now on. */
  put(disk: number, blk: BlockBackend, host: ChannelHost): void {
    this.#guests.delete(disk);
    this.#disks.set(disk, { blk, controlMutex: new CoMutex('disk control'), host });
  }

  /** Its home is elsewhere from now on; `guest` stands for it where somebody here needs it. */
  remove(disk: number, guest: BlockBackend | undefined): void {
    this.#disks.delete(disk);
    if (guest) this.#guests.set(disk, guest);
  }

  /** Opens a guest, unless the disk is here in either way. */
  async addGuest({ disk, descriptor, name, optimal }: GuestMessage): Promise<void> {
    if (this.#disks.has(disk) || this.#guests.has(disk)) {
      descriptor.port.close();
      return;
    }
    this.#guests.set(disk, await openGuest(this.#context, descriptor, { name, optimal }));
  }

  /** Nothing happens where there is none. */
  async closeGuest(disk: number): Promise<void> {
    const guest = this.#guests.get(disk);
    this.#guests.delete(disk);
    if (guest) await closeGuest(guest);
  }

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
    this.#disks.set(disk, { blk, controlMutex: new CoMutex('disk control'), host: undefined });
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
    const { blk, controlMutex, host } = this.#entry(disk);
    this.#disks.delete(disk);
    using _turn = await controlMutex.lock();
    await host?.close();
    await blk.close();
  }

  /** Closes all, and rejects with the first failure after. */
  async closeAll(): Promise<void> {
    const all = [
      ...[...this.#disks.keys()].map((disk) => this.close(disk)),
      ...[...this.#guests.keys()].map((disk) => this.closeGuest(disk)),
    ];
    for (const result of await Promise.allSettled(all)) if (result.status === 'rejected') throw result.reason;
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
