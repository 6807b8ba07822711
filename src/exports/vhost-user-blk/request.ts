/** A guest's request, from its chain to its status byte. [virtio 1.2: 5.2.6 Device Operation] */
import { Errno } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { type Bytes, MAX_OFFSET } from '../../base/units.ts';
import { RequestFlags } from '../../block/driver.ts';
import { BlockRequest, RequestKind } from '../../block/request.ts';
import { memoryOf } from '../../native/memory.ts';
import {
  BLK_HEADER_BYTES,
  BLK_ID_BYTES,
  BLK_SECTOR,
  BLK_SEGMENT_BYTES,
  BlkRequestType,
  BlkStatus,
  SEGMENT_UNMAP,
} from '../../proto/virtio-blk/constants.ts';
import type { Chain } from './chain.ts';
import type { BlkDevice } from './device.ts';
import { copyRuns } from './guest-memory.ts';

/** Of one discard or write of zeroes, in sectors: 1 GiB, so that none keeps a disk busy for long. */
export const MAX_RANGE_SECTORS = 2 ** 21;
/** Answered by nobody yet. */
const UNDER_WAY = -1;
const TWO_32 = 0x1_0000_0000;

export interface RequestOwner {
  /** Its status is in place. */
  requestDone(request: BlkRequest): void;
}

/** One for each head, or id, of a queue, used again and again. */
export class BlkRequest extends BlockRequest {
  /** The head of its chain, or the id that a packed ring has for it. */
  readonly id: number;
  /** Places of a packed ring that it took. */
  slots = 1;
  /** What it goes by in the area of requests in flight. */
  entry = 0;
  readonly #owner: RequestOwner;
  readonly #device: BlkDevice;
  busy = false;
  /** What the queue counts for memory besides the guest's. */
  heldBytes: Bytes = 0;
  /** What the device may write in the chain; 0 for a request that is none. */
  usedBytes: Bytes = 0;
  #statusMemory: Memory | null = null;
  #statusAt = 0;
  /** The guest's memory of a transfer whose data goes through memory of ours; its length is 0 otherwise. */
  readonly #aside = new Iov();

  constructor(device: BlkDevice, owner: RequestOwner, id: number) {
    super();
    this.quiet = true;
    this.#device = device;
    this.#owner = owner;
    this.id = id;
  }

  /** Bytes that a transfer holds besides the guest's. */
  get asideBytes(): Bytes {
    return this.#aside.length;
  }

  /** Begins what the chain says; the owner hears of its end, perhaps at once. */
  begin(chain: Chain, good: boolean): void {
    const { writable } = chain;
    const last = writable.count - 1;
    this.#statusMemory = writable.memories[last]!;
    this.#statusAt = writable.offsets[last]! + writable.lengths[last]! - 1;
    this.usedBytes = writable.length;
    this.iov.reset();
    this.#aside.reset();
    const status = good ? this.#start(chain) : BlkStatus.IOERR;
    if (status !== UNDER_WAY) this.#end(status);
  }

  override done(error: number): void {
    let status: number = BlkStatus.OK;
    if (error !== 0) {
      status = error === -Errno.ENOTSUP ? BlkStatus.UNSUPP : BlkStatus.IOERR;
    } else if (this.#aside.length > 0 && this.kind === RequestKind.READ) {
      if (copyRuns(this.#aside, this.iov.memories[0]!, true) < 0) status = BlkStatus.IOERR;
    }
    this.#end(status);
  }

  #end(status: number): void {
    const device = this.#device;
    if (device.log !== null && this.kind === RequestKind.READ) {
      device.log.markRuns(this.#aside.length > 0 ? this.#aside : this.iov);
    }
    device.putByte(this.#statusMemory!, this.#statusAt, status);
    this.#aside.reset();
    this.iov.reset();
    this.#owner.requestDone(this);
  }

  #start(chain: Chain): number {
    const { readable, writable } = chain;
    if (readable.length < BLK_HEADER_BYTES) return BlkStatus.IOERR;
    let view = readable.memories[0]!.view;
    let at = readable.offsets[0]!;
    const device = this.#device;
    if (readable.lengths[0]! < BLK_HEADER_BYTES || device.guest.guarded) {
      if (!device.fetch(readable, 0, BLK_HEADER_BYTES)) return BlkStatus.IOERR;
      view = device.scratch.view;
      at = 0;
    }
    const type = view.getUint32(at, true);
    const sector = view.getUint32(at + 12, true) * TWO_32 + view.getUint32(at + 8, true);
    switch (type) {
      case BlkRequestType.IN:
        return this.#transfer(RequestKind.READ, sector, writable, 0, writable.length - 1);
      case BlkRequestType.OUT:
        if (!device.writable) return BlkStatus.IOERR;
        return this.#transfer(
          RequestKind.WRITE,
          sector,
          readable,
          BLK_HEADER_BYTES,
          readable.length - BLK_HEADER_BYTES,
        );
      case BlkRequestType.FLUSH:
        return this.#submit(RequestKind.FLUSH, 0, 0, 0);
      case BlkRequestType.GET_ID:
        return this.#getId(writable);
      case BlkRequestType.DISCARD:
      case BlkRequestType.WRITE_ZEROES:
        return this.#range(type, readable);
      default:
        return BlkStatus.UNSUPP;
    }
  }

  #submit(kind: number, at: number, length: Bytes, flags: number): number {
    this.kind = kind;
    this.at = at;
    this.length = length;
    this.flags = flags;
    this.#device.blk.submit(this);
    return UNDER_WAY;
  }

  #transfer(kind: number, sector: number, runs: Iov, from: Bytes, length: Bytes): number {
    const device = this.#device;
    const at = sector * BLK_SECTOR;
    if (length % device.blockBytes !== 0 || at % device.blockBytes !== 0) return BlkStatus.IOERR;
    if (at > MAX_OFFSET || at + length > device.bytes) return BlkStatus.IOERR;
    if (length === 0) return BlkStatus.OK;
    const write = kind === RequestKind.WRITE;
    if (device.guest.guarded) {
      this.#aside.sliceOf(runs, from, length);
      const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(length)));
      if (write && copyRuns(this.#aside, memory, false) < 0) return BlkStatus.IOERR;
      this.iov.push(memory, 0, length);
    } else this.iov.sliceOf(runs, from, length);
    return this.#submit(kind, at, length, write && !device.writeback ? RequestFlags.FUA : 0);
  }

  #getId(writable: Iov): number {
    const device = this.#device;
    this.kind = RequestKind.READ;
    this.iov.sliceOf(writable, 0, Math.min(BLK_ID_BYTES, writable.length - 1));
    if (!device.guest.guarded) this.iov.copyFrom(device.serial.bytes.subarray(0, this.iov.length));
    else if (copyRuns(this.iov, device.serial, true) < 0) return BlkStatus.IOERR;
    return BlkStatus.OK;
  }

  #range(type: number, readable: Iov): number {
    const device = this.#device;
    if (!device.writable) return BlkStatus.IOERR;
    if (readable.length !== BLK_HEADER_BYTES + BLK_SEGMENT_BYTES) return BlkStatus.IOERR;
    if (!device.fetch(readable, BLK_HEADER_BYTES, BLK_SEGMENT_BYTES)) return BlkStatus.IOERR;
    const { view } = device.scratch;
    const at = (view.getUint32(4, true) * TWO_32 + view.getUint32(0, true)) * BLK_SECTOR;
    const sectors = view.getUint32(8, true);
    const flags = view.getUint32(12, true);
    const zero = type === BlkRequestType.WRITE_ZEROES;
    if ((flags & (zero ? ~SEGMENT_UNMAP : ~0)) !== 0) return BlkStatus.UNSUPP;
    const length = sectors * BLK_SECTOR;
    if (sectors > MAX_RANGE_SECTORS || at > MAX_OFFSET || at + length > device.bytes) return BlkStatus.IOERR;
    if (length === 0) return BlkStatus.OK;
    if (!zero) return this.#submit(RequestKind.DISCARD, at, length, 0);
    const unmap = (flags & SEGMENT_UNMAP) !== 0 ? RequestFlags.MAY_UNMAP : 0;
    return this.#submit(RequestKind.ZERO, at, length, unmap | (device.writeback ? 0 : RequestFlags.FUA));
  }
}
