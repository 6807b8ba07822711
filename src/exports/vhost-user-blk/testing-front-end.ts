/** For tests: a front-end and a driver in the same thread, over a socket pair and memory of its own. */
import type { AioContext } from '../../aio/context.ts';
import { spawn } from '../../aio/op.ts';
import { Errno } from '../../base/errors.ts';
import { type Bytes, MiB } from '../../base/units.ts';
import * as eventfd from '../../native/eventfd.ts';
import { close, ftruncate } from '../../native/file.ts';
import { NativeMemory } from '../../native/memory.ts';
import { addSeals, memfdCreate, Seal } from '../../native/mmap.ts';
import { recvFds, sendFds, socketpair } from '../../native/socket.ts';
import { FrontRequest, HEADER_BYTES, HeaderFlag, ProtocolFeature } from '../../proto/vhost-user/constants.ts';
import {
  decodeHeader,
  decodeU64,
  decodeVringState,
  encodeBits,
  encodeMemoryTable,
  encodeMessage,
  encodeU64,
  encodeVringAddress,
  encodeVringState,
  type MemoryRegion,
} from '../../proto/vhost-user/message.ts';
import { BlkFeature, HighFeature, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { PackedDriver } from '../../proto/virtio-blk/packed-driver.ts';
import { packedParts } from '../../proto/virtio-blk/packed-ring.ts';
import { SplitDriver, splitParts } from '../../proto/virtio-blk/split-driver.ts';
import type { VhostUserBlkServer } from './server.ts';

/** Guest and front-end addresses of the memory. */
export const GUEST = 0x4000_0000;
export const USER = 0x7f12_0000_0000;
/** Where requests are made; the rings are before it. */
const DATA_AT = MiB;
/** Room of one request: header, status and segment in the first part, data after. */
const SLOT = 64 * 1024;
const DATA_IN_SLOT = 4096;
const UNTIL_MS_MAX = 20_000;

export interface Reply {
  readonly payload: Uint8Array;
  readonly fds: readonly number[];
}

/** Takes turns until `done` answers something else than undefined. */
export async function turnsUntil<T>(done: () => T | undefined, what: string): Promise<T> {
  for (const begin = performance.now(); performance.now() - begin < UNTIL_MS_MAX; ) {
    const value = done();
    if (value !== undefined) return value;
    await new Promise((resolve) => setImmediate(resolve));
  }
  throw new Error(`waited too long for ${what}`);
}

export class FrontEnd {
  readonly context: AioContext;
  readonly fd: number;
  /** Settles when the session has ended. */
  readonly served: Promise<void>;
  readonly memfd: number;
  readonly bytes: Bytes;
  readonly memory: NativeMemory;
  readonly kicks: number[] = [];
  readonly calls: number[] = [];
  /** Of split rings; packed ones are {@link packedDrivers}. */
  readonly drivers: SplitDriver[] = [];
  readonly packedDrivers: PackedDriver[] = [];
  /** The base of a packed ring that is new. */
  static readonly PACKED_BASE = 0x8000_8000;
  packed = false;
  features = 0;
  #closed = false;

  private constructor(context: AioContext, fd: number, served: Promise<void>, memfd: number, bytes: Bytes) {
    this.context = context;
    this.fd = fd;
    this.served = served;
    this.memfd = memfd;
    this.bytes = bytes;
    this.memory = NativeMemory.ofFile(memfd, bytes) as NativeMemory;
  }

  static async connect(server: VhostUserBlkServer, sealed = true, bytes: Bytes = 8 * MiB): Promise<FrontEnd> {
    const { context } = server;
    const [ours, theirs] = socketpair() as readonly [number, number];
    const served = server.serve(await context.backend.adoptSocket(theirs));
    spawn(served);
    const memfd = memfdCreate('front-end');
    ftruncate(memfd, bytes);
    // Who has said that the seals are final cannot be asked to seal more.
    addSeals(memfd, sealed ? Seal.SHRINK : Seal.SEAL);
    return new FrontEnd(context, ours, served, memfd, bytes);
  }

  /** All that it has. */
  get allFds(): readonly number[] {
    return [this.memfd, ...this.kicks, ...this.calls].filter((fd) => fd !== undefined);
  }

  get region(): MemoryRegion {
    return { guest: GUEST, user: USER, length: this.bytes, offset: 0 };
  }

  send(request: number, payload?: Uint8Array, fds: readonly number[] = [], flags = 0): void {
    const message = encodeMessage(request, payload, flags);
    sendFds(this.fd, message, fds);
  }

  /** The next bytes; undefined at the end of the stream. */
  async #read(length: number, fds: number[]): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const received = await turnsUntil(() => {
        const result = recvFds(this.fd, length - done, 8);
        return result === -Errno.EAGAIN ? undefined : result;
      }, 'an answer');
      if (typeof received === 'number' || received.bytes.length === 0) return undefined;
      fds.push(...received.fds);
      bytes.set(received.bytes, done);
      done += received.bytes.length;
    }
    return bytes;
  }

  /** The next answer; undefined when the session has ended. */
  async receive(): Promise<Reply | undefined> {
    const fds: number[] = [];
    const head = await this.#read(HEADER_BYTES, fds);
    if (!head) return undefined;
    const { length } = decodeHeader(head);
    const payload = length === 0 ? new Uint8Array(0) : await this.#read(length, fds);
    return payload && { payload, fds };
  }

  /** A message that has an answer by its nature. */
  async call(request: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<Reply | undefined> {
    this.send(request, payload, fds);
    return this.receive();
  }

  /** A message whose answer says how it went: 0, or what went wrong; undefined when the session has ended. */
  async acked(request: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<number | undefined> {
    this.send(request, payload, fds, HeaderFlag.NEED_REPLY);
    const reply = await this.receive();
    return reply && decodeU64(reply.payload);
  }

  /** Takes the features that are offered, but for `without`, and protocol features. */
  async negotiate(without = 0): Promise<void> {
    const offered = await this.call(FrontRequest.GET_FEATURES);
    const low = new DataView(offered!.payload.buffer).getUint32(0, true);
    this.features = low & ~(without | RingFeature.LOG_ALL);
    const protocol = await this.call(FrontRequest.GET_PROTOCOL_FEATURES);
    this.send(FrontRequest.SET_PROTOCOL_FEATURES, protocol!.payload);
    await this.acked(FrontRequest.SET_OWNER);
    await this.setFeatures();
  }

  async setFeatures(more = 0): Promise<void> {
    await this.acked(FrontRequest.SET_FEATURES, encodeBits(this.features | more, this.#high));
  }

  get #high(): number {
    return HighFeature.VERSION_1 | (this.packed ? HighFeature.RING_PACKED : 0);
  }

  async shareMemory(): Promise<void> {
    await this.acked(FrontRequest.SET_MEM_TABLE, encodeMemoryTable([this.region]), [this.memfd]);
  }

  /** Where ring `index` is in the memory; each has 64 KiB. */
  ringAt(index: number): number {
    return index * 64 * 1024;
  }

  addressOf(index: number, size: number, flags = 0, log = 0): Uint8Array {
    const at = USER + this.ringAt(index);
    const [split, packed] = [splitParts(size), packedParts(size)];
    return encodeVringAddress({
      ...{ index, flags, log, descriptors: at },
      available: at + (this.packed ? packed.driver : split.avail),
      used: at + (this.packed ? packed.device : split.used),
    });
  }

  /** Sets up ring `index` with the driver's side, and starts it. */
  async startRing(
    index: number,
    size = 128,
    base = this.packed ? FrontEnd.PACKED_BASE : 0,
    fresh = true,
  ): Promise<void> {
    if (fresh) this.#newDriver(index, size);
    this.kicks[index] ??= eventfd.create();
    this.calls[index] ??= eventfd.create();
    await this.acked(FrontRequest.SET_VRING_NUM, encodeVringState({ index, value: size }));
    await this.acked(FrontRequest.SET_VRING_BASE, encodeVringState({ index, value: base }));
    await this.acked(FrontRequest.SET_VRING_ADDR, this.addressOf(index, size));
    await this.acked(FrontRequest.SET_VRING_CALL, encodeU64(index), [this.calls[index]!]);
    await this.acked(FrontRequest.SET_VRING_KICK, encodeU64(index), [this.kicks[index]!]);
    await this.acked(FrontRequest.SET_VRING_ENABLE, encodeVringState({ index, value: 1 }));
  }

  #newDriver(index: number, size: number): void {
    const at = this.ringAt(index);
    const eventIdx = (this.features & RingFeature.EVENT_IDX) !== 0;
    this.memory.bytes.fill(0, at, at + splitParts(size).bytes);
    if (this.packed) this.packedDrivers[index] = new PackedDriver(this.memory, at, size, eventIdx);
    else this.drivers[index] = new SplitDriver(this.memory, at, size, eventIdx);
  }

  driver(index = 0): SplitDriver | PackedDriver {
    return (this.packed ? this.packedDrivers[index] : this.drivers[index])!;
  }

  /** Where slot `slot` of requests is, from the start of the memory. */
  slotAt(slot: number): number {
    return DATA_AT + slot * SLOT;
  }

  dataOf(slot: number, length: number): Uint8Array {
    const at = this.slotAt(slot) + DATA_IN_SLOT;
    return this.memory.bytes.subarray(at, at + length);
  }

  /** Makes a request available in the usual shape: header, data, status. */
  push(slot: number, type: number, sector: number, length: number, writable: boolean): number {
    const driver = this.driver();
    const at = this.slotAt(slot);
    const { view } = this.memory;
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 0, true);
    view.setUint32(at + 8, sector % 2 ** 32, true);
    view.setUint32(at + 12, Math.floor(sector / 2 ** 32), true);
    this.memory.bytes[at + 16] = 0xff;
    driver.add(GUEST + at, 16, false);
    if (length > 0) driver.add(GUEST + at + DATA_IN_SLOT, length, writable);
    driver.add(GUEST + at + 16, 1, true);
    return driver.end();
  }

  status(slot: number): number {
    return this.memory.bytes[this.slotAt(slot) + 16]!;
  }

  kick(index = 0): void {
    eventfd.signal(this.kicks[index]!);
  }

  /** Shows what was made available, and notifies if the device wants that. */
  publish(index = 0): void {
    if (this.driver(index).publish()) this.kick(index);
  }

  /** The head of the next used chain. */
  used(index = 0): Promise<number> {
    const driver = this.driver(index);
    return turnsUntil(() => (driver.hasUsed ? driver.collect() : undefined), 'a used chain');
  }

  /** One request to its end; its status. */
  async request(type: number, sector: number, length = 0, writable = true, slot = 0): Promise<number> {
    this.push(slot, type, sector, length, writable);
    this.publish();
    await this.used();
    return this.status(slot);
  }

  async stopRing(index: number): Promise<number> {
    const reply = await this.call(FrontRequest.GET_VRING_BASE, encodeVringState({ index, value: 0 }));
    return decodeVringState(reply!.payload)!.value;
  }

  /** Leaves; resolves when the session has ended. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    close(this.fd);
    await this.served;
    this.memory.release();
    for (const fd of this.allFds) close(fd);
  }
}

/** What a driver takes that wants neither events nor tables. */
export const PLAIN = RingFeature.EVENT_IDX | RingFeature.INDIRECT_DESC;
export { BlkFeature, ProtocolFeature };
