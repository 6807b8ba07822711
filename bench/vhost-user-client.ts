/**
 * A front-end without a virtual machine: one queue on a back-end's socket, driven as a guest would. A program of its
 * own, since it spins and blocks: `vhost-user-client SOCKET LOAD`, LOAD as JSON; prints a VhostResult as JSON.
 */
import { Prng } from '../src/base/prng.ts';
import * as eventfd from '../src/native/eventfd.ts';
import { ftruncate } from '../src/native/file.ts';
import { libc } from '../src/native/lib.ts';
import { memoryOf, NativeMemory } from '../src/native/memory.ts';
import { addSeals, memfdCreate, Seal } from '../src/native/mmap.ts';
import { connect, recvFds, sendFds, socket } from '../src/native/socket.ts';
import { FrontRequest, HEADER_BYTES } from '../src/proto/vhost-user/constants.ts';
import {
  decodeBits,
  encodeBits,
  encodeMemoryTable,
  encodeMessage,
  encodeU64,
  encodeVringAddress,
  encodeVringState,
} from '../src/proto/vhost-user/message.ts';
import { BlkFeature, BlkRequestType, BlkStatus, HighFeature, RingFeature } from '../src/proto/virtio-blk/constants.ts';
import { PackedDriver } from '../src/proto/virtio-blk/packed-driver.ts';
import { packedParts } from '../src/proto/virtio-blk/packed-ring.ts';
import { SplitDriver, splitParts } from '../src/proto/virtio-blk/split-driver.ts';

export interface VhostLoad {
  readonly write: boolean;
  readonly depth: number;
  readonly blockBytes: number;
  /** Of the disk that is used. */
  readonly bytes: number;
  readonly seconds: number;
  /** Microseconds to look at the ring before waiting for an interrupt. */
  readonly spinUs: number;
  /** With a packed ring, where the back-end has them. */
  readonly packed: boolean;
}

export interface VhostResult {
  readonly iops: number;
  readonly operations: number;
}

const PPOLL = process.arch === 'x64' ? 271 : 73;
const USER = 0x7f00_0000_0000;
const SIZE = 128;
const SLOTS_AT = 65536;

class Client {
  readonly #fd: number;
  readonly #memory: NativeMemory;
  readonly #kick = eventfd.create();
  readonly #call = eventfd.create();
  /** struct pollfd of it. */
  readonly #poll = memoryOf(new Uint8Array(new SharedArrayBuffer(8)));
  readonly #packed: boolean;
  readonly #driver: SplitDriver | PackedDriver;
  readonly #load: VhostLoad;
  readonly #slotBytes: number;
  readonly #prng = new Prng(7);
  readonly #slotOf = new Int32Array(SIZE);

  constructor(path: string, load: VhostLoad) {
    this.#load = load;
    this.#slotBytes = 4096 + load.blockBytes;
    const address = { kind: 'unix', path } as const;
    this.#fd = socket(address);
    if (connect(this.#fd, address) < 0) throw new Error(`Could not connect to '${path}'`);
    const bytes = Math.ceil((SLOTS_AT + load.depth * this.#slotBytes) / 4096) * 4096;
    this.#poll.view.setInt32(0, this.#call, true);
    this.#poll.view.setInt16(4, 1, true);
    const memfd = memfdCreate('bench');
    ftruncate(memfd, bytes);
    addSeals(memfd, Seal.SHRINK);
    this.#memory = NativeMemory.ofFile(memfd, bytes) as NativeMemory;
    const wanted = RingFeature.EVENT_IDX | RingFeature.INDIRECT_DESC | RingFeature.PROTOCOL_FEATURES | BlkFeature.FLUSH;
    const offered = decodeBits(this.#ask(FrontRequest.GET_FEATURES))!;
    const features = offered.low & wanted;
    this.#ask(FrontRequest.GET_PROTOCOL_FEATURES);
    this.#send(FrontRequest.SET_PROTOCOL_FEATURES, encodeU64(0));
    this.#send(FrontRequest.SET_OWNER);
    this.#packed = load.packed && (offered.high & HighFeature.RING_PACKED) !== 0;
    const high = HighFeature.VERSION_1 | (this.#packed ? HighFeature.RING_PACKED : 0);
    this.#send(FrontRequest.SET_FEATURES, encodeBits(features, high));
    const region = { guest: 0, user: USER, length: bytes, offset: 0 };
    this.#send(FrontRequest.SET_MEM_TABLE, encodeMemoryTable([region]), [memfd]);
    const Driver = this.#packed ? PackedDriver : SplitDriver;
    this.#driver = new Driver(this.#memory, 0, SIZE, (features & RingFeature.EVENT_IDX) !== 0);
    this.#startRing();
  }

  #startRing(): void {
    const [split, packed] = [splitParts(SIZE), packedParts(SIZE)];
    const [avail, used] = this.#packed ? [packed.driver, packed.device] : [split.avail, split.used];
    const index = 0;
    this.#send(FrontRequest.SET_VRING_NUM, encodeVringState({ index, value: SIZE }));
    this.#send(FrontRequest.SET_VRING_BASE, encodeVringState({ index, value: this.#packed ? 0x8000_8000 : 0 }));
    const parts = { descriptors: USER, available: USER + avail, used: USER + used };
    this.#send(FrontRequest.SET_VRING_ADDR, encodeVringAddress({ index, flags: 0, log: 0, ...parts }));
    this.#send(FrontRequest.SET_VRING_CALL, encodeU64(index), [this.#call]);
    this.#send(FrontRequest.SET_VRING_KICK, encodeU64(index), [this.#kick]);
    this.#send(FrontRequest.SET_VRING_ENABLE, encodeVringState({ index, value: 1 }));
  }

  #send(request: number, payload?: Uint8Array, fds: readonly number[] = []): void {
    sendFds(this.#fd, encodeMessage(request, payload), fds);
  }

  #ask(request: number): Uint8Array {
    this.#send(request);
    const quiet = new Int32Array(new SharedArrayBuffer(4));
    for (;;) {
      const received = recvFds(this.#fd, 256, 0);
      if (typeof received !== 'number') return received.bytes.subarray(HEADER_BYTES);
      Atomics.wait(quiet, 0, 0, 1);
    }
  }

  #submit(slot: number): void {
    const { write, blockBytes, bytes } = this.#load;
    const at = SLOTS_AT + slot * this.#slotBytes;
    const { view } = this.#memory;
    view.setUint32(at, write ? BlkRequestType.OUT : BlkRequestType.IN, true);
    view.setUint32(at + 8, (this.#prng.below(Math.floor(bytes / blockBytes)) * blockBytes) / 512, true);
    const driver = this.#driver;
    driver.add(at, 16, false);
    driver.add(at + 4096, blockBytes, !write);
    driver.add(at + 16, 1, true);
    this.#slotOf[driver.end()] = slot;
  }

  /** Waits until something was used. */
  #wait(): void {
    const driver = this.#driver;
    const { spinUs } = this.#load;
    if (spinUs > 0) {
      const end = performance.now() + spinUs / 1000;
      do {
        for (let i = 0; i < 50; i++) if (driver.hasUsed) return;
      } while (performance.now() < end);
    }
    while (!driver.arm()) {
      libc().syscall(PPOLL, this.#poll.address, 1, 0, 0, 0, 0);
      eventfd.drain(this.#call);
    }
  }

  run(seconds: number): VhostResult {
    const driver = this.#driver;
    const { depth } = this.#load;
    const begin = performance.now();
    const end = begin + seconds * 1000;
    let operations = 0;
    let busy = depth;
    for (let slot = 0; slot < depth; slot++) this.#submit(slot);
    if (driver.publish()) eventfd.signal(this.#kick);
    let goOn = true;
    while (busy > 0) {
      if (!driver.hasUsed) this.#wait();
      for (let head = driver.collect(); head >= 0; head = driver.collect()) {
        const slot = this.#slotOf[head]!;
        operations++;
        if (this.#memory.bytes[SLOTS_AT + slot * this.#slotBytes + 16] !== BlkStatus.OK) {
          throw new Error('Could not measure: a request has failed');
        }
        if (goOn) this.#submit(slot);
        else busy--;
      }
      if (driver.publish()) eventfd.signal(this.#kick);
      if (goOn && performance.now() > end) goOn = false;
    }
    return { iops: operations / ((performance.now() - begin) / 1000), operations };
  }
}

const [path, text] = process.argv.slice(2);
const load = JSON.parse(text!) as VhostLoad;
const client = new Client(path!, load);
client.run(load.seconds / 4);
process.stdout.write(JSON.stringify(client.run(load.seconds)));
