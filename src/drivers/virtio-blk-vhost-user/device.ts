/**
 * One connection to a back-end: its queues, and the requests that it has. All in turns of the context's loop: the
 * device is a poller, so what was used is collected, and what was made available shown, once a turn, without an
 * interrupt or a notification while both sides are awake.
 *
 * Nothing that the back-end writes is believed: ids and indices are checked against what was made available, lengths
 * against what was asked for, and descriptors are never read back. What cannot be ends the connection.
 */
import type { AioSocket, Poller } from '../../aio/backend.ts';
import { coTimeout } from '../../aio/co-timeout.ts';
import type { AioContext } from '../../aio/context.ts';
import { FdSignal, FdWatch } from '../../aio/fd-watch.ts';
import { BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import type { Fifo } from '../../base/fifo.ts';
import type { Bytes } from '../../base/units.ts';
import * as eventfd from '../../native/eventfd.ts';
import { close } from '../../native/file.ts';
import { socketpair } from '../../native/socket.ts';
import { FrontRequest } from '../../proto/vhost-user/constants.ts';
import { encodeMemoryTable, encodeU64, encodeVringAddress, encodeVringState } from '../../proto/vhost-user/message.ts';
import {
  BLK_HEADER_BYTES,
  BLK_SECTOR,
  BLK_SEGMENT_BYTES,
  BlkRequestType,
  BlkStatus,
} from '../../proto/virtio-blk/constants.ts';
import { PackedDriver } from '../../proto/virtio-blk/packed-driver.ts';
import { packedParts } from '../../proto/virtio-blk/packed-ring.ts';
import { BROKEN, SplitDriver, splitParts } from '../../proto/virtio-blk/split-driver.ts';
import { DESCRIPTOR_BYTES, DescriptorFlag } from '../../proto/virtio-blk/split-ring.ts';
import type { Command } from './command.ts';
import { FrontEnd, type FrontEndOwner } from './front-end.ts';
import { type Agreement, negotiate, readSize, SEGMENTS_MAX } from './negotiate.ts';
import type { VhostUserTarget } from './options.ts';
import { HEADER_AT, SEGMENT_AT, SharedMemory, SLOTS, STATUS_AT, TABLE_AT } from './shared-memory.ts';

/** Descriptors of a queue; as many as any back-end takes. */
const QUEUE_SIZE = 256;
/** While so many are free, a request takes them one by one; a table costs the other side one more place to read. */
const DIRECT_ROOM = 128;
/** Header, data and status. */
const PARTS_MAX = SEGMENTS_MAX + 2;
/** The base of a packed ring that is new: both wrap counters are 1. */
const PACKED_BASE = 0x8000_8000;
const TWO_32 = 0x1_0000_0000;
/** Not a status: the device writes one of its own over it. */
const NO_STATUS = 0xff;

/** Throws BlockError. */
export async function connectSocket(aio: AioContext, { path, answerNs }: VhostUserTarget): Promise<AioSocket> {
  const connecting = aio.backend.connect({ kind: 'unix', path });
  try {
    return await coTimeout(aio, connecting, answerNs, 'connect');
  } catch (error) {
    // One that comes too late.
    connecting.then((socket) => socket.close()).catch(() => undefined);
    throw new BlockError(errnoOf(error), errnoText(errnoOf(error)), { cause: error });
  }
}

interface Queue {
  readonly driver: SplitDriver | PackedDriver;
  readonly call: FdWatch;
  readonly kick: FdSignal;
}

/** What a device tells its session; never within a call of the session's. */
export interface DeviceOwner {
  readonly ready: Fifo<Command>;
  done(command: Command, result: number): void;
  /** It is of no more use; `broken`: for what it has done. */
  lost(device: Device, broken: boolean): void;
  resized(device: Device): void;
}

export class Device implements Poller, FrontEndOwner {
  agreed!: Agreement;
  /** Of the disk, as it is now. */
  bytes: Bytes = 0;
  readonly #aio: AioContext;
  readonly #target: VhostUserTarget;
  readonly #owner: DeviceOwner;
  readonly #front: FrontEnd;
  #memory: SharedMemory | undefined;
  readonly #queues: Queue[] = [];
  readonly #commands: (Command | null)[] = new Array(SLOTS).fill(null);
  /** By queue and id of a chain: its slot. */
  readonly #slots: Int16Array[] = [];
  #inFlight = 0;
  #serial = 0;
  /** Interrupts were asked for. */
  #armed = true;
  #polled = false;
  #ended = false;
  /** The space is being read; it has changed since. */
  #reading = false;
  #changed = false;
  // The parts of the request that is made.
  readonly #addresses = new Float64Array(PARTS_MAX);
  readonly #lengths = new Int32Array(PARTS_MAX);
  readonly #writes = new Uint8Array(PARTS_MAX);
  #parts = 0;

  /** Takes over the socket. To be closed, whatever becomes of {@link start}. */
  constructor(aio: AioContext, socket: AioSocket, target: VhostUserTarget, owner: DeviceOwner) {
    this.#aio = aio;
    this.#target = target;
    this.#owner = owner;
    this.#front = new FrontEnd(aio, socket, target.answerNs, this);
  }

  /** Agrees with the back-end, and starts the queues. Throws BlockError: why it could not. */
  async start(): Promise<void> {
    const front = this.#front;
    const agreed = await negotiate(front, this.#target);
    this.agreed = agreed;
    this.bytes = agreed.info.bytes;
    if (agreed.tells) await this.#openChannel();
    const parts = agreed.packed ? packedParts(QUEUE_SIZE) : splitParts(QUEUE_SIZE);
    const memory = new SharedMemory(agreed.queues, parts.bytes);
    this.#memory = memory;
    const at = memory.addressOf(0);
    const region = { guest: at, user: at, length: memory.bytes, offset: 0 };
    await front.tell(FrontRequest.SET_MEM_TABLE, encodeMemoryTable([region]), [memory.fd]);
    for (let index = 0; index < agreed.queues; index++) await this.#startQueue(index, memory, agreed);
    if (this.#ended) throw new BlockError(Errno.EIO, 'it has ended the connection');
    this.#aio.pollers.push(this);
    this.#polled = true;
  }

  async #openChannel(): Promise<void> {
    const pair = socketpair();
    if (typeof pair === 'number') throw new BlockError(pair, errnoText(pair));
    const [ours, theirs] = pair;
    this.#front.listen(this.#aio, await this.#aio.backend.adoptSocket(ours));
    try {
      await this.#front.tell(FrontRequest.SET_BACKEND_REQ_FD, undefined, [theirs]);
    } finally {
      close(theirs);
    }
  }

  async #startQueue(index: number, memory: SharedMemory, { packed, eventIdx }: Agreement): Promise<void> {
    const start = index * memory.ringBytes;
    const Driver = packed ? PackedDriver : SplitDriver;
    const { backend } = this.#aio;
    const [call, kick] = [eventfd.create(), eventfd.create()];
    const queue: Queue = {
      driver: new Driver(memory.window, start, QUEUE_SIZE, eventIdx),
      // The loop is awake now, and polls.
      call: new FdWatch(backend, call, close, () => undefined),
      kick: new FdSignal(backend, kick, close),
    };
    this.#queues.push(queue);
    this.#slots.push(new Int16Array(QUEUE_SIZE));
    const at = memory.addressOf(start);
    const { driver, device } = packedParts(QUEUE_SIZE);
    const { avail, used } = splitParts(QUEUE_SIZE);
    const front = this.#front;
    const state = (value: number): Uint8Array => encodeVringState({ index, value });
    const parts = { available: at + (packed ? driver : avail), used: at + (packed ? device : used) };
    await front.tell(FrontRequest.SET_VRING_NUM, state(QUEUE_SIZE));
    await front.tell(FrontRequest.SET_VRING_BASE, state(packed ? PACKED_BASE : 0));
    await front.tell(
      FrontRequest.SET_VRING_ADDR,
      encodeVringAddress({ index, flags: 0, log: 0, descriptors: at, ...parts }),
    );
    await front.tell(FrontRequest.SET_VRING_CALL, encodeU64(index), [call]);
    await front.tell(FrontRequest.SET_VRING_KICK, encodeU64(index), [kick]);
    await front.tell(FrontRequest.SET_VRING_ENABLE, state(1));
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  // Poller.

  poll(): boolean {
    if (this.#ended) return false;
    if (this.#armed) this.#disarm();
    let progress = false;
    for (let index = 0; index < this.#queues.length; index++) if (this.#collect(index)) progress = true;
    if (this.#ended) return true;
    const { ready } = this.#owner;
    while (ready.length > 0 && this.#begin(ready.peek()!)) {
      ready.shift();
      progress = true;
    }
    for (let index = 0; index < this.#queues.length; index++) {
      const { driver, kick } = this.#queues[index]!;
      if (driver.publish()) kick.signal();
    }
    return progress;
  }

  ready(): boolean {
    if (this.#ended) return false;
    for (let index = 0; index < this.#queues.length; index++) if (this.#queues[index]!.driver.hasUsed) return true;
    return false;
  }

  arm(): boolean {
    if (this.#ended) return false;
    this.#armed = true;
    let come = false;
    for (let index = 0; index < this.#queues.length; index++) if (this.#queues[index]!.driver.arm()) come = true;
    return come;
  }

  #disarm(): void {
    this.#armed = false;
    for (let index = 0; index < this.#queues.length; index++) this.#queues[index]!.driver.disarm();
  }

  // Requests.

  /** False when there is no room for it now: something is in flight that will make some. */
  #begin(command: Command): boolean {
    const memory = this.#memory!;
    const slot = memory.take(command.iov === null ? 0 : command.length);
    if (slot < 0) return false;
    const index = slot % this.#queues.length;
    const { driver } = this.#queues[index]!;
    this.#describe(command, slot, memory);
    const direct = !this.agreed.indirect || driver.room - this.#parts >= DIRECT_ROOM;
    if (driver.room < (direct ? this.#parts : 1)) {
      memory.give(slot);
      return false;
    }
    if (direct) this.#addParts(driver);
    else this.#addTable(driver, memory, slot);
    this.#slots[index]![driver.end()] = slot;
    this.#commands[slot] = command;
    command.slot = slot;
    command.serial = this.#serial++;
    command.looks = 0;
    this.#inFlight++;
    return true;
  }

  /** Fills in the slot, and says what the parts of the chain are. */
  #describe(command: Command, slot: number, memory: SharedMemory): void {
    const { type, at, length, iov } = command;
    const { view } = memory.window;
    const start = memory.slotAt(slot);
    const sector = Math.floor(at / BLK_SECTOR);
    // Of a range, the segment says where it is.
    const first = iov === null ? 0 : sector;
    view.setUint32(start + HEADER_AT, type, true);
    view.setUint32(start + HEADER_AT + 4, 0, true);
    view.setUint32(start + HEADER_AT + 8, first % TWO_32, true);
    view.setUint32(start + HEADER_AT + 12, Math.floor(first / TWO_32), true);
    view.setUint8(start + STATUS_AT, NO_STATUS);
    this.#parts = 0;
    this.#part(memory.addressOf(start + HEADER_AT), BLK_HEADER_BYTES, 0);
    if (iov !== null) {
      const write = type === BlkRequestType.OUT;
      if (write) iov.copyTo(memory.data(slot, length));
      const data = memory.addressOf(memory.dataAt(slot));
      const most = this.agreed.info.segmentBytes;
      for (let done = 0; done < length; done += most) {
        this.#part(data + done, Math.min(most, length - done), write ? 0 : 1);
      }
    } else if (type !== BlkRequestType.FLUSH) {
      view.setUint32(start + SEGMENT_AT, sector % TWO_32, true);
      view.setUint32(start + SEGMENT_AT + 4, Math.floor(sector / TWO_32), true);
      view.setUint32(start + SEGMENT_AT + 8, length / BLK_SECTOR, true);
      view.setUint32(start + SEGMENT_AT + 12, command.flags, true);
      this.#part(memory.addressOf(start + SEGMENT_AT), BLK_SEGMENT_BYTES, 0);
    }
    this.#part(memory.addressOf(start + STATUS_AT), 1, 1);
  }

  #part(address: number, length: Bytes, writes: number): void {
    const part = this.#parts++;
    this.#addresses[part] = address;
    this.#lengths[part] = length;
    this.#writes[part] = writes;
  }

  #addParts(driver: SplitDriver | PackedDriver): void {
    for (let part = 0; part < this.#parts; part++) {
      driver.add(this.#addresses[part]!, this.#lengths[part]!, this.#writes[part] === 1);
    }
  }

  #addTable(driver: SplitDriver | PackedDriver, memory: SharedMemory, slot: number): void {
    const { view } = memory.window;
    const start = memory.slotAt(slot) + TABLE_AT;
    for (let part = 0; part < this.#parts; part++) {
      const at = start + part * DESCRIPTOR_BYTES;
      const address = this.#addresses[part]!;
      const writes = this.#writes[part] === 1 ? DescriptorFlag.WRITE : 0;
      view.setUint32(at, address % TWO_32, true);
      view.setUint32(at + 4, Math.floor(address / TWO_32), true);
      view.setUint32(at + 8, this.#lengths[part]!, true);
      // A packed ring's table is read from end to end; its flags are where a split ring has the next.
      const next = part + 1 < this.#parts ? DescriptorFlag.NEXT + (part + 1) * 65536 : 0;
      view.setUint32(at + 12, this.agreed.packed ? writes * 65536 : writes + next, true);
    }
    driver.addTable(memory.addressOf(start), this.#parts * DESCRIPTOR_BYTES);
  }

  #collect(index: number): boolean {
    const { driver } = this.#queues[index]!;
    let progress = false;
    for (;;) {
      const id = driver.collect();
      if (id === -1) return progress;
      progress = true;
      if (id === BROKEN) {
        this.#front.end(`queue ${index} shows as used what was not made available`, true);
        return true;
      }
      this.#finish(this.#slots[index]![id]!, driver.written);
      if (this.#ended) return true;
    }
  }

  #finish(slot: number, written: Bytes): void {
    const memory = this.#memory!;
    const command = this.#commands[slot]!;
    const { iov, length, type } = command;
    const reads = type === BlkRequestType.IN ? length : 0;
    if (written > reads + 1) {
      this.#front.end(`it has written ${written} bytes where there is room for ${reads + 1}`, true);
      return;
    }
    const status = memory.window.view.getUint8(memory.slotAt(slot) + STATUS_AT);
    let result = -Errno.EIO;
    if (status === BlkStatus.OK && written >= reads) {
      if (reads > 0) {
        const data = memory.data(slot, length);
        if (iov!.count === 1) iov!.memories[0]!.bytes.set(data, iov!.offsets[0]!);
        else iov!.copyFrom(data);
      }
      result = iov === null ? 0 : length;
    } else if (status === BlkStatus.UNSUPP) result = -Errno.ENOTSUP;
    this.#commands[slot] = null;
    command.slot = -1;
    this.#inFlight--;
    memory.give(slot);
    this.#owner.done(command, result);
  }

  /** True when a request is in flight that was so the last two times that this was asked. */
  hasOverdue(): boolean {
    let overdue = false;
    for (const command of this.#commands) if (command !== null && command.looks++ >= 2) overdue = true;
    return overdue;
  }

  /** The requests that it has, in their order; they are the caller's. */
  takeCommands(): Command[] {
    const commands = this.#commands.filter((command) => command !== null);
    this.#commands.fill(null);
    this.#inFlight = 0;
    for (const command of commands) command.slot = -1;
    return commands.sort((a, b) => a.serial - b.serial);
  }

  // FrontEndOwner.

  ended(broken: boolean): void {
    this.#ended = true;
    if (this.#polled) this.#aio.oneshot(() => this.#owner.lost(this, broken), 'vhost-user lost');
  }

  changed(): void {
    this.#changed = true;
    if (!this.#reading && this.#polled) this.#aio.run('vhost-user configuration', () => this.#reread());
  }

  async #reread(): Promise<void> {
    this.#reading = true;
    try {
      while (this.#changed && !this.#ended) {
        this.#changed = false;
        const bytes = await readSize(this.#front, this.agreed.info);
        if (bytes === this.bytes || this.#ended) continue;
        this.bytes = bytes;
        this.#owner.resized(this);
      }
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#front.end(error.message, true);
    } finally {
      this.#reading = false;
    }
  }

  /** Ends the connection; `broken`: for what the back-end has done. */
  leave(why: string, broken: boolean): void {
    this.#front.end(why, broken);
  }

  /** No request is in flight. */
  async close(): Promise<void> {
    if (this.#polled) this.#aio.pollers.splice(this.#aio.pollers.indexOf(this), 1);
    this.#polled = false;
    for (const { call, kick } of this.#queues.splice(0)) {
      call.close();
      kick.close();
    }
    await this.#front.close();
    this.#memory?.release();
    this.#memory = undefined;
  }
}
