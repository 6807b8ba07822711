/** The device that a front-end sees: what the driver has taken of it, the guest's memory, and the queues. */
import type { AioBackend } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, MiB } from '../../base/units.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { fstat } from '../../native/file.ts';
import { memoryOf } from '../../native/memory.ts';
import { Window } from '../../native/window.ts';
import { inflightRegionBytes } from '../../proto/vhost-user/inflight.ts';
import type { InflightArea, LogArea } from '../../proto/vhost-user/message.ts';
import { BLK_ID_BYTES } from '../../proto/virtio-blk/constants.ts';
import { configSpace } from './config.ts';
import { DirtyLog } from './dirty-log.ts';
import { cannotShrink, copyRuns, GuestMemory, guestAddressOf } from './guest-memory.ts';
import { InflightQueue } from './inflight.ts';
import { PackedInflight } from './packed-inflight.ts';
import { BlkQueue } from './queue.ts';

export interface BlkDeviceOptions {
  readonly writable: boolean;
  readonly queues: number;
  /** A power of two from 512. */
  readonly blockBytes: Bytes;
  /** Guests see 20 bytes of it. */
  readonly serial: string;
}

const SCRATCH_BYTES = 64;
/** The log of a guest with 8 TiB of memory. */
const MAX_LOG_BYTES: Bytes = 256 * MiB;

/** `bytes` in memory that the kernel can copy from. */
function lasting(bytes: Uint8Array): Memory {
  const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(bytes.length)));
  memory.bytes.set(bytes);
  return memory;
}

function idOf(serial: string): Uint8Array {
  const id = new Uint8Array(BLK_ID_BYTES);
  new TextEncoder().encodeInto(serial, id);
  return id;
}

export class BlkDevice {
  readonly context: AioContext;
  readonly backend: AioBackend;
  /** Another one shows the disk from here when that moves to another thread; nothing is in flight then. */
  blk: BlockBackend;
  readonly writable: boolean;
  readonly blockBytes: Bytes;
  readonly guest = new GuestMemory();
  readonly queues: readonly BlkQueue[];
  readonly serial: Memory;
  readonly scratch: Memory = lasting(new Uint8Array(SCRATCH_BYTES));
  /** Taken by the driver: the low word. */
  features = 0;
  /** Its rings are packed. */
  packed = false;
  /** Size of the disk in whole blocks. */
  bytes: Bytes = 0;
  /** Writes may stay in a cache until they are flushed. */
  writeback = true;
  log: DirtyLog | null = null;
  /** Told when a queue has met what cannot be. */
  onBroken: (queue: number, why: string) => void = () => undefined;
  readonly #one: Memory = lasting(new Uint8Array(1));
  readonly #part = new Iov();
  #logWindow: Window | null = null;
  #inflight: { readonly window: Window; readonly area: InflightArea } | null = null;

  constructor(context: AioContext, blk: BlockBackend, options: BlkDeviceOptions) {
    this.context = context;
    this.backend = context.backend;
    this.blk = blk;
    this.writable = options.writable;
    this.blockBytes = options.blockBytes;
    this.serial = lasting(idOf(options.serial));
    this.queues = Array.from({ length: options.queues }, (_, i) => new BlkQueue(this, i));
    this.resized();
  }

  /** The size of the disk is another. */
  resized(): void {
    this.bytes = this.blk.length - (this.blk.length % this.blockBytes);
  }

  config(): Uint8Array {
    const { bytes, blockBytes, writeback, queues, blk } = this;
    return configSpace({ bytes, blockBytes, writeback, queues: queues.length, limits: blk.limits });
  }

  // What requests use.

  /** Copies part of `runs` into {@link scratch}; false when it is not there. */
  fetch(runs: Iov, from: Bytes, length: Bytes): boolean {
    const part = this.#part.sliceOf(runs, from, length);
    if (this.guest.guarded) return copyRuns(part, this.scratch, false) === 0;
    part.copyTo(this.scratch.bytes);
    return true;
  }

  /** Writes one byte of the guest's. */
  putByte(memory: Memory, at: number, value: number): void {
    if (this.guest.guarded) {
      this.#one.bytes[0] = value;
      // Memory that is gone has nobody who waits for the byte.
      copyRuns(this.#part.reset().push(memory, at, 1), this.#one, true);
    } else memory.bytes[at] = value;
    if (this.log !== null) this.log.mark(guestAddressOf(memory, at), 1);
  }

  // What the session sets. The queues are paused.

  /** Takes the log's area; the caller closes `fd`. Throws BlockError. */
  setLog(fd: number, area: LogArea): void {
    const window = this.#map(fd, area, MAX_LOG_BYTES, 'the dirty log');
    this.dropLog();
    this.#logWindow = window;
    this.log = new DirtyLog(window, window.skip, area.length);
  }

  dropLog(): void {
    this.log = null;
    this.#logWindow?.release();
    this.#logWindow = null;
  }

  /** Takes the area of the requests in flight; the caller closes `fd`. Throws BlockError. */
  setInflight(fd: number, area: InflightArea): void {
    const need = area.queues * inflightRegionBytes(area.queueSize, this.packed);
    if (area.length < need) {
      throw new BlockError(Errno.EINVAL, `Could not map the inflight area: ${area.length} bytes are not ${need}`);
    }
    const window = this.#map(fd, area, need + MiB, 'the inflight area');
    this.dropInflight();
    this.#inflight = { window, area };
  }

  dropInflight(): void {
    this.#inflight?.window.release();
    this.#inflight = null;
  }

  /** The part of queue `index`; null when there is no area, or none for a queue like that. */
  inflightOf(index: number, size: number): InflightQueue | PackedInflight | null {
    const inflight = this.#inflight;
    if (!inflight || index >= inflight.area.queues || size !== inflight.area.queueSize) return null;
    const at = inflight.window.skip + index * inflightRegionBytes(size, this.packed);
    const { view } = inflight.window;
    return this.packed ? new PackedInflight(view, at, size) : new InflightQueue(view, at, size);
  }

  #map(fd: number, { offset, length }: LogArea, limit: Bytes, what: string): Window {
    const refuse = (errno: number, why = errnoText(errno)): never => {
      throw new BlockError(errno, `Could not map ${what}: ${why}`);
    };
    const stat = fstat(fd);
    if (typeof stat === 'number') return refuse(stat);
    if (length === 0 || length > limit) return refuse(Errno.EINVAL, `${length} bytes are not from 1 to ${limit}`);
    if (offset + length > stat.size) return refuse(Errno.EINVAL, `its file has ${stat.size} bytes only`);
    if (!cannotShrink(fd)) return refuse(Errno.EINVAL, 'its file is not sealed against shrinking');
    const window = Window.of(fd, offset, length);
    return typeof window === 'number' ? refuse(window) : window;
  }
}
