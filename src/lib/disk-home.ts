/** Where a disk lives: the thread of its nodes, and those in which a guest stands for it. */
import { CoRwLock } from '../aio/co-rwlock.ts';
import { descriptorOf, newOffer } from '../channel/descriptor.ts';
import type { BlkDescriptor } from '../channel/layout.ts';
import { type IOThread, type ThreadUse, useThread } from './iothread.ts';
import type { Method, MethodArgs, MethodResult } from './messages.ts';
import { type DiskMoved, move } from './move.ts';

export class DiskHome {
  readonly #disk: number;
  /** Of every thread that it has been in: services of it may still be there. */
  readonly #uses: ThreadUse[];
  readonly #guests = new Set<IOThread>();
  /** Read while its home is not to change. */
  readonly #lock = new CoRwLock('home of a disk');
  #thread: IOThread;
  #nodeName: string;

  constructor(disk: number, use: ThreadUse, nodeName: string) {
    this.#disk = disk;
    this.#uses = [use];
    this.#thread = use.thread;
    this.#nodeName = nodeName;
  }

  get thread(): IOThread {
    return this.#thread;
  }

  /** {@link thread}, once no move is under way. */
  async settled(): Promise<IOThread> {
    using _stays = await this.#lock.readLock();
    return this.#thread;
  }

  get nodeName(): string {
    return this.#nodeName;
  }

  /** Asks the thread that is its home by then. */
  async call<M extends Method>(method: M, args: MethodArgs<M>): Promise<MethodResult<M>> {
    using _stays = await this.#lock.readLock();
    return await this.#thread.call(method, args);
  }

  async descriptor(): Promise<BlkDescriptor> {
    using _stays = await this.#lock.readLock();
    return await this.#share();
  }

  async #share(): Promise<BlkDescriptor> {
    const { offer, port } = newOffer();
    const identity = await this.#thread.call('share', { disk: this.#disk, offer }, [offer.port]);
    return descriptorOf(identity, offer.words, port);
  }

  /** Runs `body` while the disk does not move; what is in `thread` can use it, wherever its home is. `name`: for
   *  messages. */
  async shownIn<T>(thread: IOThread, name: string, body: () => Promise<T>): Promise<T> {
    using _stays = await this.#lock.readLock();
    if (thread !== this.#thread && !this.#guests.has(thread)) {
      const descriptor = await this.#share();
      const { optimal } = await this.#thread.call('stat', { disk: this.#disk });
      await thread.call('guest', { disk: this.#disk, name, descriptor, optimal }, [descriptor.port]);
      this.#guests.add(thread);
    }
    return await body();
  }

  /** Nothing in `thread` uses it any more. */
  async notShownIn(thread: IOThread): Promise<void> {
    using _stays = await this.#lock.readLock();
    if (this.#guests.delete(thread)) await thread.call('guest-close', { disk: this.#disk });
  }

  /** See Disk.setAioContext. */
  async move(to: IOThread): Promise<void> {
    using _alone = await this.#lock.writeLock();
    if (to === this.#thread) return;
    if (!this.#uses.some(({ thread }) => thread === to)) this.#uses.push(await useThread(to, undefined));
    await move({ disk: this.#disk }, this.#thread, to, (moved) => this.moved(to, moved.get(this.#disk)!));
  }

  /** Waits for what is under way; nothing is asked of it, and its home does not change, until the answer ends. */
  async rest(): Promise<Disposable> {
    return await this.#lock.writeLock();
  }

  /** Its nodes are in `to` from now on. Inside {@link rest}. */
  moved(to: IOThread, { nodeName, guest }: DiskMoved): void {
    const from = this.#thread;
    this.#thread = to;
    this.#nodeName = nodeName;
    this.#guests.delete(to);
    if (guest) this.#guests.add(from);
  }

  /** A guest is gone with its thread, whatever that died of. */
  async closeGuests(): Promise<void> {
    const closing = [...this.#guests].map((thread) => thread.call('guest-close', { disk: this.#disk }));
    await Promise.all(closing.map((one) => one.catch(() => undefined)));
  }

  /** Of its threads, each. */
  get uses(): readonly ThreadUse[] {
    return this.#uses;
  }
}
