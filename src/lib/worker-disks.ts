/** The disks of an IOThread, by number. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { type Bytes, KiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import type { NodeOptions } from '../block/graph.ts';
import { BlockStatus } from '../block/status.ts';
import { ChannelHost } from '../channel/host.ts';
import type { BlkIdentity, ChannelOffer } from '../channel/layout.ts';
import { MAGIC_BYTES, magicOf } from './magic.ts';
import type { BlockExtent, OpenMessage, OpenReply, RangeMessage, StatReply, TruncateMessage } from './messages.ts';

/** Disks open in one thread at a time. */
const MAX_DISKS = 1024;
/** Extents in one answer about block status. */
const MAX_EXTENTS = 1024;

export class WorkerDisks {
  readonly #context: AioContext;
  readonly #disks = new Map<number, BlockBackend>();
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
    const blk = this.#disks.get(disk);
    if (!blk) throw new BlockError(Errno.EBADF, `Could not use disk ${disk}: it is not open`);
    return blk;
  }

  async open({ options, name, writethrough, probed }: OpenMessage): Promise<OpenReply> {
    if (this.#disks.size + this.#opening >= MAX_DISKS) {
      throw new BlockError(Errno.EMFILE, `Could not open '${name}': ${MAX_DISKS} disks are open in this IOThread`);
    }
    this.#opening++;
    try {
      const readOnly = options['read-only'];
      const blk = await BlockBackend.open(this.#context, options as unknown as NodeOptions, {
        ...{ name, writethrough },
        ...(readOnly === undefined ? {} : { readOnly }),
      });
      try {
        if (probed) await this.#assertPlain(blk, name);
      } catch (error) {
        await blk.close().catch(() => undefined);
        throw error;
      }
      const disk = ++this.#ids;
      this.#disks.set(disk, blk);
      const { length: size, readOnly: sealed, stats } = blk;
      return { disk, size, readOnly: sealed, nodeName: blk.root?.name ?? '', counters: stats.words };
    } finally {
      this.#opening--;
    }
  }

  /** Nobody said what format it is: raw it is, unless it says otherwise itself. */
  async #assertPlain(blk: BlockBackend, name: string): Promise<void> {
    const length = Math.min(4 * KiB, blk.length);
    if (length < 4) return;
    const memory = this.#context.backend.memory(new Uint8Array(new SharedArrayBuffer(4 * KiB)));
    await blk.read(0, Iov.of(memory, 0, length));
    const format = magicOf(memory.bytes.subarray(0, MAGIC_BYTES));
    if (format === undefined) return;
    const what = `Could not open '${name}': it looks like a ${format} image, which is not supported yet`;
    throw new BlockError(Errno.EINVAL, `${what}; give the format raw to use its bytes as they are`);
  }

  async close(disk: number): Promise<void> {
    const blk = this.blk(disk);
    const host = this.#hosts.get(disk);
    this.#disks.delete(disk);
    this.#hosts.delete(disk);
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

  async truncate({ disk, size }: TruncateMessage): Promise<Bytes> {
    const blk = this.blk(disk);
    await blk.truncate(size);
    return blk.length;
  }

  stat(disk: number): StatReply {
    const blk = this.blk(disk);
    const { alignment, optimal } = blk.limits;
    return { size: blk.length, readOnly: blk.readOnly, optimal: Math.max(optimal, alignment, 4 * KiB), alignment };
  }
}
