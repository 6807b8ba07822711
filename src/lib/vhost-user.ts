/** Disks as vhost-user-blk devices of virtual machines. */
import { EventEmitter } from 'node:events';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type { SocketAddress } from '../aio/backend.ts';
import { onAbort } from '../aio/on-abort.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { DEFAULT_QUEUES } from '../proto/virtio-blk/constants.ts';
import type { Abortable } from './abort.ts';
import type { Disk } from './disk.ts';
import type { IOThread } from './iothread.ts';
import { listenOf } from './listen.ts';
import type { VhostUserShape, VhostUserStartMessage, VhostUserStartReply, VhostUserStats } from './messages.ts';
import { PrivateDirectory } from './private-directory.ts';

export interface ServeVhostUserOptions extends Abortable {
  /** Path of the unix socket; default: one in a private directory, which is removed at the end. */
  readonly socket?: string | undefined;
  /** Mode of the unix socket's file; default 0o600. */
  readonly socketMode?: number | undefined;
  /** A unix socket that was handed to us: one that listens, or one that a virtual machine is connected to; then nobody
   *  else comes once that has left. It belongs to the service from here on. */
  readonly fd?: number | undefined;
  /** Refuse writes; default: as the disk is. */
  readonly readOnly?: boolean | undefined;
  /** The most queues that a guest may have, 1 to 256; default 64. */
  readonly queues?: number | undefined;
  /** Logical block size that guests see: 512 (default), 1024, 2048 or 4096. */
  readonly blockSize?: Bytes | undefined;
  /**
   * The IOThreads that serve the queues, each queue in one of them; the first also has the socket. Those of `vqs`, or,
   * where none of the entries has any, all in turn. A thread that is not the home of the disk does its I/O by itself
   * where the bytes are in a file that it can use, and else through a channel. Default: the IOThread of the disk.
   */
  readonly iothreadVqMapping?: readonly QueueThread[] | undefined;
  /** What guests see as the disk's serial number; 20 bytes of it. Default: none. */
  readonly serial?: string | undefined;
}

/** An IOThread, and the numbers of the queues that it serves. */
export interface QueueThread {
  readonly iothread: IOThread;
  readonly vqs?: readonly number[] | undefined;
}

/** What {@link serveVhostUser} goes by. */
interface Placement {
  readonly threads: readonly IOThread[];
  /** By queue: the index of its thread. */
  readonly placement: readonly number[];
}

function placementOf(disk: Disk, options: ServeVhostUserOptions): Placement {
  const { iothreadVqMapping: mapping = [{ iothread: disk.iothread }], queues } = options;
  const refuse = (why: string): BlockError => new BlockError(Errno.EINVAL, `iothreadVqMapping: ${why}`);
  const threads = mapping.map(({ iothread }) => iothread);
  if (threads.length === 0) throw refuse('there is no thread');
  if (new Set(threads).size < threads.length) throw refuse('a thread is there twice');
  const count = queues ?? DEFAULT_QUEUES;
  const given = mapping.filter(({ vqs }) => vqs !== undefined).length;
  if (given === 0) return { threads, placement: Array.from({ length: count }, (_, i) => i % threads.length) };
  if (given < mapping.length) throw refuse('some entries have vqs, and some have not');
  const placement: (number | undefined)[] = new Array(count).fill(undefined);
  for (const [thread, { vqs = [] }] of mapping.entries()) {
    for (const queue of vqs) {
      if (!Number.isInteger(queue) || queue < 0 || queue >= count) {
        throw refuse(`queue ${queue} is not from 0 to ${count - 1}`);
      }
      if (placement[queue] !== undefined) throw refuse(`queue ${queue} is there twice`);
      placement[queue] = thread;
    }
  }
  const missing = placement.indexOf(undefined);
  if (missing >= 0) throw refuse(`queue ${missing} has no thread`);
  return { threads, placement: placement as number[] };
}

/** A running vhost-user-blk device. 'crash' comes when its IOThread died; 'client' and 'disconnect' when a virtual
 *  machine comes and goes, the latter with the reason when it did not simply leave. */
export class VhostUserService extends EventEmitter<{ crash: [Error]; client: []; disconnect: [string | undefined] }> {
  readonly address: SocketAddress;
  /** Those that serve queues; the first has the socket. */
  readonly iothreads: readonly IOThread[];
  readonly #id: number;
  readonly #directory: PrivateDirectory | undefined;
  readonly #crashes: readonly ((error: Error) => void)[];
  readonly #detach: () => void;
  /** @internal Runs once when it has ended. */
  onEnd: (() => void) | undefined;
  #stopping: Promise<void> | undefined;
  #ended = false;
  #last: VhostUserStats | undefined;

  /** @internal Use serveVhostUser(). */
  constructor(
    disk: Disk,
    threads: readonly IOThread[],
    reply: VhostUserStartReply,
    directory: PrivateDirectory | undefined,
  ) {
    super();
    this.iothreads = threads;
    this.address = reply.address;
    this.#id = reply.service;
    this.#directory = directory;
    this.#detach = disk.dependOn(() => this.stop());
    this.#crashes = threads.map((thread) => {
      const onCrash = (error: Error): void => this.#crashed(thread, error);
      thread.on('crash', onCrash);
      thread.hold();
      return onCrash;
    });
    this.iothread.listen(reply.service, (name, why) => this.#event(name, why));
  }

  /** The first of its IOThreads. */
  get iothread(): IOThread {
    return this.iothreads[0]!;
  }

  /** Path of the socket. */
  get socket(): string {
    return this.address.kind === 'unix' ? this.address.path : '';
  }

  /** What it has seen so far; after `stop`, the last of it. What the disk has done is `disk.ioStats`. */
  async stats(): Promise<VhostUserStats> {
    return this.#last ?? this.iothread.call('vhost-user-stats', { service: this.#id });
  }

  /** Ends the session of the virtual machine, once its requests in flight have ended, and listens no more. A machine
   *  that reconnects goes on with the next service on that socket. Again: the same end. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    try {
      this.#last = await this.iothread.call('vhost-user-stop', { service: this.#id });
    } catch (error) {
      // The thread stops its services itself when it is stopped.
      if (!(error instanceof BlockError && error.errno === Errno.ESHUTDOWN)) throw error;
    } finally {
      this.#end();
    }
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#detach();
    for (const [i, thread] of this.iothreads.entries()) {
      thread.unhold();
      thread.off('crash', this.#crashes[i]!);
    }
    this.iothread.listen(this.#id, undefined);
    this.#directory?.remove();
    this.onEnd?.();
    this.onEnd = undefined;
  }

  /** Without one of its threads it is not what was asked for. */
  #crashed(thread: IOThread, error: Error): void {
    if (this.#ended) return;
    if (thread === this.iothread) this.#end();
    else this.stop().catch(() => undefined);
    if (this.listenerCount('crash') > 0) this.emit('crash', error);
  }

  #event(name: string, payload: unknown): void {
    if (name === 'client') this.emit('client');
    else if (name === 'disconnect') this.emit('disconnect', (payload as { readonly why: string | undefined }).why);
  }
}

/** Starts the service in the first of the threads, and what the others have of it before. */
async function start(
  disk: Disk,
  { threads, placement }: Placement,
  shape: VhostUserShape,
  listen: Pick<VhostUserStartMessage, 'listen' | 'mode'>,
): Promise<VhostUserStartReply> {
  const ports: MessagePort[] = [];
  try {
    for (const thread of threads.slice(1)) {
      const { port1, port2 } = new MessageChannel();
      ports.push(port1);
      const join = { disk: disk.id, shape, port: port2 };
      await disk.shownIn(thread, () => thread.call('vhost-user-join', join, [port2]));
    }
    const first = threads[0]!;
    const message = { ...listen, disk: disk.id, shape, members: { ports, placement } };
    return await disk.shownIn(first, () => first.call('vhost-user-start', message, ports));
  } catch (error) {
    // What has joined leaves with it.
    for (const port of ports) port.close();
    throw error;
  }
}

/**
 * Serves a disk to virtual machines over vhost-user, one at a time; resolves once it accepts. Requests go from the
 * guest's memory to the image and back in IOThreads, which must run on io_uring (ENOTSUP otherwise). The disk may move
 * to another IOThread; its queues stay.
 *
 * ```ts
 * const service = await serveVhostUser(disk, { socket: '/run/vm.sock' });
 * // qemu-system-x86_64 -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \
 * //   -chardev socket,id=c,path=/run/vm.sock,reconnect=1 -device vhost-user-blk-pci,chardev=c
 * ```
 */
export async function serveVhostUser(disk: Disk, options: ServeVhostUserOptions = {}): Promise<VhostUserService> {
  const { signal, fd, socket } = options;
  if (disk.closed) throw new BlockError(Errno.EBADF, `Could not export '${disk.name}': it is closed`);
  const placement = placementOf(disk, options);
  signal?.throwIfAborted();
  const [given] = await listenOf({ fd, socket });
  const directory = given ? undefined : new PrivateDirectory();
  const release = disk.hold();
  let service: VhostUserService | undefined;
  try {
    const shape = {
      writable: !(options.readOnly ?? disk.readOnly),
      queues: options.queues,
      blockBytes: options.blockSize,
      serial: options.serial,
    };
    const listen = given ?? ({ kind: 'unix', path: `${directory!.path}/vhost-user.sock` } as const);
    const reply = await start(disk, placement, shape, { listen, mode: options.socketMode ?? 0o600 });
    service = new VhostUserService(disk, placement.threads, reply, directory);
    if (signal) {
      const running = service;
      running.onEnd = onAbort(signal, () => void running.stop().catch(() => undefined));
      signal.throwIfAborted();
    }
    return service;
  } catch (error) {
    await service?.stop().catch(() => undefined);
    directory?.remove();
    throw error;
  } finally {
    release();
  }
}
