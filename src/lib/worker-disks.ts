/** The disks of an IOThread, by number. */
import { CoMutex } from '../aio/co-mutex.ts';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import type { NodeOptions } from '../block/graph.ts';
import { BlockStatus } from '../block/status.ts';
import { ChannelHost } from '../channel/host.ts';
import type { BlkIdentity, ChannelOffer } from '../channel/layout.ts';
import { ofImage } from './image-head.ts';
import type { BlockExtent, OpenMessage, OpenReply, RangeMessage, StatReply, TruncateMessage } from './messages.ts';
import { probe } from './probe.ts';
import { NO_REFERENCES } from './reference-policy.ts';
import { assertUnchanged, resolveReferences } from './references.ts';

/** Disks open in one thread at a time. */
const MAX_DISKS = 1024;
/** Extents in one answer about block status. */
const MAX_EXTENTS = 1024;

interface OpenDisk {
  readonly blk: BlockBackend;
  readonly controlMutex: CoMutex;
}

export class WorkerDisks {
  readonly #context: AioContext;
  readonly #disks = new Map<number, OpenDisk>();
  /** Of the disks that other threads use. */
  readonly #hosts = new Map<number, ChannelHost>();
  #ids = 0;
  #opening = 0;

  constructor(context: AioContext) {
    this.#context = context;
  }

  get count(): number {
    return this.#disks.size;
  }

  /** Opens a channel to a disk. */
  introduce(disk: number, offer: ChannelOffer): BlkIdentity {
    const blk = this.blk(disk);
    const host = this.#hosts.get(disk) ?? new ChannelHost(blk);
    this.#hosts.set(disk, host);
    host.introduce(offer);
    return host.identity;
  }

  /** Throws EBADF for a number that is none. */
  blk(disk: number): BlockBackend {
    return this.#entry(disk).blk;
  }

  #entry(disk: number): OpenDisk {
    const entry = this.#disks.get(disk);
    if (!entry) throw new BlockError(Errno.EBADF, `Could not use disk ${disk}: it is not open`);
    return entry;
  }

  async open(message: OpenMessage): Promise<OpenReply> {
    const { name } = message;
    if (this.#disks.size + this.#opening >= MAX_DISKS) {
      throw new BlockError(Errno.EMFILE, `Could not open '${name}': ${MAX_DISKS} disks are open in this IOThread`);
    }
    this.#opening++;
    try {
      const blk = await this.#open(message);
      const disk = ++this.#ids;
      this.#disks.set(disk, { blk, controlMutex: new CoMutex('disk control') });
      const { length: size, readOnly: sealed, stats } = blk;
      return { disk, size, readOnly: sealed, nodeName: blk.root?.name ?? '', counters: stats.words };
    } catch (error) {
      throw ofImage(error, name);
    } finally {
      this.#opening--;
    }
  }

  async #open({ options: given, name, writethrough, probed, policy: allowed }: OpenMessage): Promise<BlockBackend> {
    const options = probed ? await probe(this.#context, given, name) : given;
    // Whatever the content has become since it was looked at.
    const policy = probed ? NO_REFERENCES : allowed;
    const resolved = await resolveReferences(options, policy);
    const readOnly = options['read-only'];
    const blk = await BlockBackend.open(this.#context, resolved as unknown as NodeOptions, {
      ...{ name, writethrough },
      ...(readOnly === undefined ? {} : { readOnly }),
    });
    try {
      await assertUnchanged(options, resolved, policy, name);
      return blk;
    } catch (error) {
      await blk.close().catch(() => undefined);
      throw error;
    }
  }

  /** What changes an image as a whole, one after the other. */
  async control<T>(disk: number, body: (blk: BlockBackend) => T | Promise<T>): Promise<T> {
    const { controlMutex } = this.#entry(disk);
    using _turn = await controlMutex.lock();
    return await body(this.blk(disk));
  }

  async close(disk: number): Promise<void> {
    const { blk, controlMutex } = this.#entry(disk);
    const host = this.#hosts.get(disk);
    this.#disks.delete(disk);
    this.#hosts.delete(disk);
    using _turn = await controlMutex.lock();
    await host?.close();
    await blk.close();
  }

  /** Closes all, and rejects with the first failure after. */
  async closeAll(): Promise<void> {
    const all = [...this.#disks.keys()].map((disk) => this.close(disk));
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
