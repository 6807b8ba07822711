/**
 * What messages do to a device and its queues. A front-end's Session has one, and so has each further thread that
 * serves queues of the same device: see members.ts. [Vhost-user Protocol: Front-end message types]
 */
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { isPowerOfTwo } from '../../base/units.ts';
import { isEventfd } from '../../native/eventfd.ts';
import { close, ftruncate } from '../../native/file.ts';
import { addSeals, memfdCreate, Seal } from '../../native/mmap.ts';
import { FrontRequest, MAX_MESSAGE_FDS, NO_FD } from '../../proto/vhost-user/constants.ts';
import { inflightRegionBytes } from '../../proto/vhost-user/inflight.ts';
import {
  decodeBits,
  decodeConfigPart,
  decodeInflight,
  decodeLog,
  decodeMemoryTable,
  decodeSingleRegion,
  decodeU64,
  decodeVringAddress,
  decodeVringState,
  encodeBits,
  encodeConfigPart,
  encodeInflight,
  encodeU64,
  encodeVringState,
} from '../../proto/vhost-user/message.ts';
import { CONFIG_WRITEBACK_AT } from '../../proto/virtio-blk/config.ts';
import { BlkFeature, HighFeature, MAX_QUEUE_SIZE, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { CONFIG_SPACE_BYTES, offeredFeatures } from './config.ts';
import type { BlkDevice } from './device.ts';
import { MAX_REGIONS } from './guest-memory.ts';
import type { FrontMessage } from './message-stream.ts';
import type { BlkQueue } from './queue.ts';

/** The payload of an answer, and a descriptor that is closed when it is sent. */
export interface Answer {
  readonly payload: Uint8Array;
  readonly fd?: number | undefined;
}
export type Handler = (message: FrontMessage) => Answer | undefined | Promise<Answer | undefined>;

/** Somebody who has queues of a device. */
export interface QueueHost {
  /** Does what a message says. Throws BlockError for what cannot be. */
  handle(message: FrontMessage): Promise<Answer | undefined>;
  /** The front-end has gone: all is as before it came. Resolves when nothing of it is in use. */
  end(): Promise<void>;
}

export function bad(why: string, errno: number = Errno.EPROTO): BlockError {
  return new BlockError(errno, why);
}

/** What a decoder has found. */
export function found<T>(value: T | undefined): T {
  if (value === undefined) throw bad('its payload cannot be read');
  return value;
}

export class DeviceMessages implements QueueHost {
  readonly #device: BlkDevice;
  readonly #handlers: ReadonlyMap<number, Handler>;

  constructor(device: BlkDevice) {
    this.#device = device;
    this.#handlers = this.#table();
  }

  async handle(message: FrontMessage): Promise<Answer | undefined> {
    const handler = this.#handlers.get(message.request);
    if (!handler) throw bad('it is not known', Errno.ENOTSUP);
    return handler(message);
  }

  async end(): Promise<void> {
    const device = this.#device;
    await this.#reset();
    device.guest.clear();
    device.dropInflight();
    device.dropLog();
    device.packed = false;
  }

  #table(): ReadonlyMap<number, Handler> {
    const device = this.#device;
    const offered = offeredFeatures(device.writable);
    const R = FrontRequest;
    const nothing: Handler = () => undefined;
    return new Map<number, Handler>([
      [R.GET_FEATURES, () => ({ payload: encodeBits(offered.low, offered.high) })],
      [R.SET_FEATURES, (message) => this.#setFeatures(message)],
      [R.SET_OWNER, nothing],
      [R.RESET_OWNER, () => this.#reset()],
      [R.RESET_DEVICE, () => this.#reset()],
      [R.SET_MEM_TABLE, (message) => this.#setMemory(message)],
      [R.GET_MAX_MEM_SLOTS, () => ({ payload: encodeU64(MAX_REGIONS) })],
      [R.ADD_MEM_REG, (message) => this.#addRegion(message)],
      [R.REM_MEM_REG, (message) => this.#removeRegion(message)],
      [R.SET_LOG_BASE, (message) => this.#setLog(message)],
      [R.SET_LOG_FD, (message) => this.#setLogFd(message)],
      [R.SET_VRING_NUM, (message) => this.#setSize(message)],
      [R.SET_VRING_ADDR, (message) => this.#setAddress(message)],
      [R.SET_VRING_BASE, (message) => this.#setBase(message)],
      [R.GET_VRING_BASE, (message) => this.#getBase(message)],
      [R.SET_VRING_KICK, (message) => this.#setKick(message)],
      [R.SET_VRING_CALL, (message) => this.#setFd(message, (queue, fd) => queue.setCall(fd))],
      [R.SET_VRING_ERR, (message) => this.#setFd(message, (queue, fd) => queue.setErr(fd))],
      [R.SET_VRING_ENABLE, (message) => this.#setEnabled(message)],
      [R.GET_QUEUE_NUM, () => ({ payload: encodeU64(device.queues.length) })],
      [R.GET_CONFIG, (message) => this.#getConfig(message)],
      [R.SET_CONFIG, (message) => this.#setConfig(message)],
      [R.GET_INFLIGHT_FD, (message) => this.#getInflight(message)],
      [R.SET_INFLIGHT_FD, (message) => this.#setInflight(message)],
    ]);
  }

  // Features.

  #setFeatures({ payload }: FrontMessage): undefined {
    const { low, high } = found(decodeBits(payload));
    const offered = offeredFeatures(this.#device.writable);
    if ((low & ~offered.low) !== 0 || (high & ~offered.high) !== 0) throw bad('it takes features that are not offered');
    const packed = (high & HighFeature.RING_PACKED) !== 0;
    if (packed !== this.#device.packed && this.#device.queues.some((queue) => queue.started)) {
      throw bad('queues of another layout are running', Errno.EBUSY);
    }
    this.#device.features = low;
    this.#device.packed = packed;
    this.#device.writeback = (low & (BlkFeature.CONFIG_WCE | BlkFeature.FLUSH)) !== 0;
    // Without protocol features there is nobody to enable them.
    if ((low & RingFeature.PROTOCOL_FEATURES) === 0) for (const queue of this.#device.queues) queue.enabled = true;
  }

  async #reset(): Promise<undefined> {
    await this.#pauseAll();
    for (const queue of this.#device.queues) {
      queue.stop();
      queue.reset();
    }
    this.#device.features = 0;
    this.#device.writeback = true;
  }

  // Memory.

  async #pauseAll(): Promise<void> {
    await Promise.all(this.#device.queues.map((queue) => queue.pause()));
  }

  /** Changes the guest's memory while no ring is in use; those that were running go on where they were. */
  async #exchange(change: () => void): Promise<undefined> {
    const { queues } = this.#device;
    await this.#pauseAll();
    try {
      change();
    } finally {
      for (const queue of queues) {
        if (queue.started && queue.start() !== undefined) queue.stop();
        queue.resume();
      }
    }
  }

  #setMemory(message: FrontMessage): Promise<undefined> {
    const regions = found(decodeMemoryTable(message.payload));
    if (regions.length === 0 || regions.length > MAX_MESSAGE_FDS) throw bad(`it has ${regions.length} regions`);
    if (message.fds.length !== regions.length) throw bad('not every region has a descriptor');
    const { guest } = this.#device;
    return this.#exchange(() => {
      guest.clear();
      for (const [i, region] of regions.entries()) guest.add(region, message.fds[i]!);
    });
  }

  #addRegion(message: FrontMessage): Promise<undefined> {
    const region = found(decodeSingleRegion(message.payload));
    const [fd] = message.fds;
    if (fd === undefined || message.fds.length !== 1) throw bad('its descriptor is missing');
    return this.#exchange(() => this.#device.guest.add(region, fd));
  }

  #removeRegion(message: FrontMessage): Promise<undefined> {
    const region = found(decodeSingleRegion(message.payload));
    return this.#exchange(() => {
      if (!this.#device.guest.remove(region)) throw bad('there is no such region', Errno.ENOENT);
    });
  }

  #setLog(message: FrontMessage): Answer {
    const area = found(decodeLog(message.payload));
    const fd = message.take();
    try {
      this.#device.setLog(fd, area);
    } finally {
      close(fd);
    }
    return { payload: encodeU64(0) };
  }

  /** Who logs would signal it; the front-end reads its log without that. */
  #setLogFd(message: FrontMessage): undefined {
    close(message.take());
  }

  // Rings.

  #queue(index: number): BlkQueue {
    const queue = this.#device.queues[index];
    if (!queue) throw bad(`there is no queue ${index}`);
    return queue;
  }

  #setSize({ payload }: FrontMessage): undefined {
    const { index, value } = found(decodeVringState(payload));
    const queue = this.#queue(index);
    if (!isPowerOfTwo(value) || value > MAX_QUEUE_SIZE) {
      throw bad(`a queue of ${value} is not a power of two up to ${MAX_QUEUE_SIZE}`);
    }
    if (queue.started) throw bad(`queue ${index} is running`, Errno.EBUSY);
    queue.size = value;
  }

  #setAddress({ payload }: FrontMessage): undefined {
    const address = found(decodeVringAddress(payload));
    const queue = this.#queue(address.index);
    const before = queue.addresses;
    queue.addresses = address;
    if (!queue.started) return;
    // The front-end says it again to switch the log of the ring on and off.
    const refusal = queue.start();
    if (refusal === undefined) return;
    queue.addresses = before;
    throw bad(refusal);
  }

  #setBase({ payload }: FrontMessage): undefined {
    const { index, value } = found(decodeVringState(payload));
    const queue = this.#queue(index);
    if (queue.started) throw bad(`queue ${index} is running`, Errno.EBUSY);
    if (value > 0xffff && !this.#device.packed) throw bad(`${value} is no index`);
    queue.base = value;
  }

  async #getBase({ payload }: FrontMessage): Promise<Answer> {
    const { index } = found(decodeVringState(payload));
    const queue = this.#queue(index);
    await queue.pause();
    const value = queue.stop();
    queue.setKick(null);
    return { payload: encodeVringState({ index, value }) };
  }

  #setKick(message: FrontMessage): undefined {
    this.#setFd(message, (queue, fd) => {
      if (fd === null) throw bad('queues that are polled all the time are not served', Errno.ENOTSUP);
      queue.setKick(fd);
      const refusal = queue.started ? undefined : queue.start();
      if (refusal === undefined) return;
      queue.setKick(null);
      throw bad(refusal);
    });
  }

  #setFd(message: FrontMessage, set: (queue: BlkQueue, fd: number | null) => void): undefined {
    const value = found(decodeU64(message.payload));
    const queue = this.#queue(value % NO_FD);
    if (value >= 2 * NO_FD) throw bad(`${value} is no queue`);
    if (value >= NO_FD) {
      set(queue, null);
      return;
    }
    const [fd] = message.fds;
    if (fd === undefined || !isEventfd(fd)) throw bad('its descriptor is no eventfd');
    set(queue, message.take());
  }

  #setEnabled({ payload }: FrontMessage): undefined {
    const { index, value } = found(decodeVringState(payload));
    if (value > 1) throw bad(`${value} is neither 0 nor 1`);
    this.#queue(index).enabled = value === 1;
  }

  // Configuration.

  #getConfig({ payload }: FrontMessage): Answer {
    const { offset, length } = found(decodeConfigPart(payload));
    if (offset + length > CONFIG_SPACE_BYTES) return { payload: encodeConfigPart(offset, new Uint8Array(0)) };
    return { payload: encodeConfigPart(offset, this.#device.config().subarray(offset, offset + length)) };
  }

  /** The write cache is all that a driver can set. */
  #setConfig({ payload }: FrontMessage): undefined {
    const { offset, length, bytes } = found(decodeConfigPart(payload));
    if (offset !== CONFIG_WRITEBACK_AT || length !== 1) throw bad('it changes what cannot be changed', Errno.EPERM);
    this.#device.writeback = bytes[0] !== 0;
  }

  // Requests in flight.

  #getInflight({ payload }: FrontMessage): Answer {
    const { queues, queueSize } = found(decodeInflight(payload));
    this.#checkInflight(queues, queueSize);
    const length = queues * inflightRegionBytes(queueSize, this.#device.packed);
    const fd = memfdCreate('blockplane-inflight');
    const result = fd < 0 ? fd : ftruncate(fd, length);
    if (result < 0) throw bad(errnoText(result), -result);
    addSeals(fd, Seal.SHRINK);
    return { payload: encodeInflight({ length, offset: 0, queues, queueSize }), fd };
  }

  #checkInflight(queues: number, queueSize: number): void {
    const count = this.#device.queues.length;
    if (queues === 0 || queues > count) throw bad(`${queues} queues are not from 1 to ${count}`);
    if (queueSize === 0 || queueSize > MAX_QUEUE_SIZE) throw bad(`a queue cannot have ${queueSize} descriptors`);
  }

  #setInflight(message: FrontMessage): undefined {
    const area = found(decodeInflight(message.payload));
    this.#checkInflight(area.queues, area.queueSize);
    if (this.#device.queues.some((queue) => queue.started)) throw bad('queues are running', Errno.EBUSY);
    const fd = message.take();
    try {
      this.#device.setInflight(fd, area);
    } finally {
      close(fd);
    }
  }
}
