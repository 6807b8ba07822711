/** The disks of an IOThread, by number. */
import { CoMutex } from '../aio/co-mutex.ts';
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import { type Bytes, KiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import type { NodeOptions } from '../block/graph.ts';
import { BlockStatus } from '../block/status.ts';
import { ofImage } from './image-head.ts';
import type {
  BlockExtent,
  OpenMessage,
  OpenReply,
  RangeMessage,
  StatReply,
  TransferMessage,
  TruncateMessage,
} from './messages.ts';
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
  #arena: Memory | undefined;
  #ids = 0;
  #opening = 0;

  constructor(context: AioContext) {
    this.#context = context;
  }

  get count(): number {
    return this.#disks.size;
  }

  /** The memory that transfers go through. */
  share(buffer: SharedArrayBuffer): void {
    this.#arena = this.#context.backend.memory(new Uint8Array(buffer));
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
      return { disk, size: blk.length, readOnly: blk.readOnly, nodeName: blk.root?.name ?? '' };
    } catch (error) {
      throw ofImage(error, name);
    } finally {
      this.#opening--;
    }
  }

  async #open({ options: given, name, writethrough, probed, policy: allowed }: OpenMessage): Promise<BlockBackend> {
    const options = probed ? await probe(given, name) : given;
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
    this.#disks.delete(disk);
    using _turn = await controlMutex.lock();
    await blk.close();
  }

  /** Closes all, and rejects with the first failure after. */
  async closeAll(): Promise<void> {
    const all = [...this.#disks.keys()].map((disk) => this.close(disk));
    for (const result of await Promise.allSettled(all)) if (result.status === 'rejected') throw result.reason;
  }

  async read({ disk, at, length, room }: TransferMessage): Promise<Bytes> {
    const blk = this.blk(disk);
    const bytes = Math.min(length, blk.length - at);
    if (bytes <= 0) return 0;
    await blk.read(at, this.#room(room, bytes));
    return bytes;
  }

  async write({ disk, at, length, room, flags }: TransferMessage): Promise<void> {
    await this.blk(disk).write(at, this.#room(room, length), flags);
  }

  #room(room: number, length: Bytes): Iov {
    const arena = this.#arena;
    if (!arena || room + length > arena.bytes.length) {
      throw new BlockError(Errno.EFAULT, `Could not use ${length} bytes at ${room} of the shared memory`);
    }
    return Iov.of(arena, room, length);
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
