/** The disks of an IOThread, by number, with what other threads have to do with them. */
import type { AioContext } from '../aio/context.ts';
import type { BlockBackend } from '../block/backend.ts';
import { ChannelHost } from '../channel/host.ts';
import type { BlkIdentity, ChannelOffer } from '../channel/layout.ts';
import { closeGuest, openGuest } from '../channel/remote-node.ts';
import type { GuestMessage } from './messages.ts';
import { ThreadDisks } from './thread-disks.ts';

export class WorkerDisks extends ThreadDisks {
  readonly #context: AioContext;
  /** Of disks that other threads use. */
  readonly #hosts = new Map<number, ChannelHost>();
  /** Disks that have their home in other threads, for users that stay in this one. */
  readonly #guests = new Map<number, BlockBackend>();

  constructor(context: AioContext, threadId: number) {
    super(context, threadId);
    this.#context = context;
  }

  /** Opens a channel to a disk. */
  introduce(disk: number, offer: ChannelOffer): BlkIdentity {
    const host = this.host(disk);
    host.introduce(offer);
    return host.identity;
  }

  host(disk: number): ChannelHost {
    const blk = this.blk(disk);
    const host = this.#hosts.get(disk) ?? new ChannelHost(blk);
    this.#hosts.set(disk, host);
    return host;
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
    this.#hosts.set(disk, host);
    this.take(disk, blk);
  }

  /** Its home is elsewhere from now on; `guest` stands for it where somebody here needs it. */
  remove(disk: number, guest: BlockBackend | undefined): void {
    this.giveUp(disk);
    this.#hosts.delete(disk);
    if (guest) this.#guests.set(disk, guest);
  }

  /** Opens a guest, unless the disk is here in either way. */
  async addGuest({ disk, descriptor, name, optimal }: GuestMessage): Promise<void> {
    if (this.has(disk) || this.#guests.has(disk)) {
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

  protected override async leave(disk: number): Promise<void> {
    const host = this.#hosts.get(disk);
    this.#hosts.delete(disk);
    await host?.close();
  }

  override closeAll(): Promise<void> {
    return super.closeAll([...this.#guests.keys()].map((disk) => this.closeGuest(disk)));
  }
}
