/**
 * The device of a node, and what becomes of requests when its back-end is lost. What must hold:
 *
 * - A request ends once, and in bounded time: when it is answered, when its back-end was lost and no other comes within
 *   `reconnect-delay`, or when it was not answered for `request-timeout` (or half as long again).
 * - A request whose back-end was lost before its answer came is made again with the next one: all that a block device
 *   does may be repeated as long as nobody was told that it is done. Each back-end has memory and rings of its own, so
 *   one that was left cannot answer for the next. What it may still do is write old bytes to the image late, as any
 *   other process that has it open.
 * - Who does what it may not is not asked the same again: its requests fail, later ones get the next back-end.
 * - What a back-end has acknowledged is its image's, whatever becomes of the process: a flush is asked of the next one.
 */
import { coSleep, type Sleep } from '../../aio/co-timeout.ts';
import type { AioContext } from '../../aio/context.ts';
import { spawn, WaitOp } from '../../aio/op.ts';
import type { Timer } from '../../aio/timers.ts';
import { BlockError, Errno, errnoOf } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { FreeList } from '../../base/free-list.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';
import { Command } from './command.ts';
import { connectSocket, Device, type DeviceOwner } from './device.ts';
import { type DeviceInfo, misfit } from './negotiate.ts';
import type { VhostUserTarget } from './options.ts';

/** How often a request is made again: whatever it is that ends the back-end, it may be the request. */
const REPEATS_MAX = 8;
/** Between attempts to reach a back-end that is gone: doubled each time. */
const BACKOFF_FIRST: Nanoseconds = 10e6;
const BACKOFF_WAITED_FOR: Nanoseconds = 500e6;
const BACKOFF_MAX: Nanoseconds = 16e9;

export class Session implements DeviceOwner {
  readonly ready = new Fifo<Command>(64);
  /** Size of the disk, as it was when a back-end was there last. */
  bytes: Bytes = 0;
  readonly #aio: AioContext;
  readonly #target: VhostUserTarget;
  readonly #onResize: () => void;
  /** Of the device that the node was opened with. */
  #info: DeviceInfo | undefined;
  #device: Device | null = null;
  /** One that is being started. */
  #candidate: Device | null = null;
  /** Ends the time in which requests wait for a back-end. */
  readonly #window: Timer;
  /** Looks for requests that are not answered. */
  readonly #watch: Timer;
  readonly #idle = new FreeList<Command>();
  #backoff: Nanoseconds = 0;
  #sleep: Sleep | null = null;
  #reconnecting: Promise<void> | undefined;
  /** No back-end is wanted: the node is inactive, or closed. */
  #resting = false;
  /** Ends of devices that are under way. */
  readonly #leaving = new Set<Promise<void>>();

  /** `onResize`: the size of the disk is another. */
  constructor(aio: AioContext, target: VhostUserTarget, onResize: () => void) {
    this.#aio = aio;
    this.#target = target;
    this.#onResize = onResize;
    this.#window = aio.timer(() => this.#giveUp(), 'virtio-blk reconnect-delay');
    this.#watch = aio.timer(() => this.#look(), 'virtio-blk request-timeout');
  }

  get info(): DeviceInfo {
    return this.#info!;
  }

  get connected(): boolean {
    return this.#device !== null;
  }

  get queues(): number {
    return this.#device?.agreed.queues ?? 0;
  }

  /** Connects, unless it is connected. Throws BlockError: why it could not. */
  async open(): Promise<void> {
    this.#resting = false;
    if (this.#device !== null) return;
    try {
      await this.#connect();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const { path } = this.#target;
      const where = { path, op: 'open' };
      throw new BlockError(errnoOf(error), `Could not open '${path}': ${error.message}`, { where, cause: error });
    }
  }

  async #connect(): Promise<void> {
    const device = new Device(this.#aio, await connectSocket(this.#aio, this.#target), this.#target, this);
    this.#candidate = device;
    try {
      this.#assertWanted();
      await device.start();
      this.#assertWanted();
      const why = this.#info && misfit(this.#info, device.agreed.info);
      if (why !== undefined) throw new BlockError(Errno.EPROTO, why);
    } catch (error) {
      await device.close();
      throw error;
    } finally {
      this.#candidate = null;
    }
    this.#info ??= device.agreed.info;
    this.#device = device;
    this.#window.cancel();
    this.resized(device);
  }

  #assertWanted(): void {
    if (this.#resting) throw new BlockError(Errno.ECANCELED, 'the node was closed');
  }

  // Requests.

  /** One to fill in and {@link submit}; it comes back by itself. */
  take(): Command {
    return this.#idle.take() ?? new Command();
  }

  /** Its op ends later, never inside. */
  submit(command: Command): void {
    if (this.#device === null && !this.#window.armed) {
      this.#end(command, -Errno.EIO);
      return;
    }
    this.ready.push(command);
    if (this.#target.requestNs > 0 && !this.#watch.armed) this.#watch.armIn(this.#target.requestNs / 2);
  }

  /** Submits and waits: the result. */
  run(type: number, at: number, length: number, flags: number): Promise<number> {
    const command = this.take();
    const op = new WaitOp();
    command.op = op;
    command.type = type;
    command.at = at;
    command.length = length;
    command.flags = flags;
    const ended = op.wait();
    this.submit(command);
    return ended;
  }

  #end(command: Command, result: number): void {
    const op = command.op!;
    command.op = null;
    command.iov = null;
    command.repeats = 0;
    this.#idle.give(command);
    this.#aio.completeLater(op, result);
  }

  #look(): void {
    const device = this.#device;
    if (device?.hasOverdue()) device.leave(`it has not answered in ${this.#target.requestNs / 1e9} seconds`, true);
    if (this.ready.length > 0 || (device !== null && device.inFlight > 0)) {
      this.#watch.armIn(this.#target.requestNs / 2);
    }
  }

  // DeviceOwner.

  done(command: Command, result: number): void {
    this.#backoff = 0;
    const op = command.op!;
    if (!op.quiet) {
      // Within a poller it could give work to libuv unseen.
      this.#end(command, result);
      return;
    }
    command.op = null;
    command.iov = null;
    command.repeats = 0;
    this.#idle.give(command);
    op.complete(result);
  }

  resized({ bytes }: Device): void {
    if (bytes === this.bytes) return;
    this.bytes = bytes;
    this.#onResize();
  }

  lost(device: Device, broken: boolean): void {
    if (device !== this.#device) return;
    this.#device = null;
    this.#bury(device);
    if (this.#target.reconnectNs > 0 && !this.#resting) this.#window.armIn(this.#target.reconnectNs);
    for (const command of device.takeCommands().reverse()) {
      if (broken || command.repeats++ >= REPEATS_MAX) this.#end(command, -Errno.EIO);
      else this.ready.unshift(command);
    }
    if (!this.#window.armed) this.#giveUp();
    this.#reconnect();
  }

  #bury(device: Device): void {
    const leaving = device.close().finally(() => this.#leaving.delete(leaving));
    this.#leaving.add(leaving);
    spawn(leaving);
  }

  /** The back-end is not waited for any longer. */
  #giveUp(): void {
    for (let left = this.ready.length; left > 0; left--) this.#end(this.ready.shift()!, -Errno.EIO);
  }

  // Coming back.

  #reconnect(): void {
    if (this.#reconnecting || this.#resting) return;
    this.#reconnecting = this.#reconnectAll().finally(() => {
      this.#reconnecting = undefined;
      // It may have been lost again since the loop looked.
      if (this.#device === null) this.#reconnect();
    });
    spawn(this.#reconnecting);
  }

  async #reconnectAll(): Promise<void> {
    while (!this.#resting && this.#device === null) {
      if (this.#backoff > 0) await this.#pause();
      if (this.#resting) return;
      this.#backoff = Math.max(BACKOFF_FIRST, this.#backoff * 2);
      try {
        await this.#connect();
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
      }
    }
  }

  async #pause(): Promise<void> {
    this.#backoff = Math.min(this.#backoff, this.#window.armed ? BACKOFF_WAITED_FOR : BACKOFF_MAX);
    this.#sleep = coSleep(this.#aio, this.#backoff);
    await this.#sleep.promise;
    this.#sleep = null;
  }

  /** Lets go of the back-end; no request is in flight. {@link open} comes back. */
  async rest(): Promise<void> {
    this.#resting = true;
    this.#window.cancel();
    this.#watch.cancel();
    this.#sleep?.wake();
    this.#candidate?.leave('the node was closed', false);
    if (this.#device !== null) this.#bury(this.#device);
    this.#device = null;
    await Promise.all([this.#reconnecting, ...this.#leaving]);
  }
}
