/** Disks as vhost-user-blk devices of virtual machines. */
import { EventEmitter } from 'node:events';
import type { SocketAddress } from '../aio/backend.ts';
import { onAbort } from '../aio/on-abort.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { Abortable } from './abort.ts';
import type { Disk } from './disk.ts';
import type { IOThread } from './iothread.ts';
import { listenOf } from './listen.ts';
import type { VhostUserStartReply, VhostUserStats } from './messages.ts';
import { PrivateDirectory } from './private-directory.ts';

export interface ServeVhostUserOptions extends Abortable {
  /** Path of the unix socket; default: one in a private directory, which is removed at the end. */
  readonly socket?: string | undefined;
  /** Mode of the unix socket's file; default 0o600. */
  readonly socketMode?: number | undefined;
  /** A listening unix socket that was handed to us. It belongs to the service from here on. */
  readonly fd?: number | undefined;
  /** Refuse writes; default: as the disk is. */
  readonly readOnly?: boolean | undefined;
  /** The most queues that a guest may have, 1 to 256; default 64. */
  readonly queues?: number | undefined;
  /** Logical block size that guests see: 512 (default), 1024, 2048 or 4096. */
  readonly blockSize?: Bytes | undefined;
  /** What guests see as the disk's serial number; 20 bytes of it. Default: none. */
  readonly serial?: string | undefined;
}

/** A running vhost-user-blk device. 'crash' comes when its IOThread died; 'client' and 'disconnect' when a virtual
 *  machine comes and goes, the latter with the reason when it did not simply leave. */
export class VhostUserService extends EventEmitter<{ crash: [Error]; client: []; disconnect: [string | undefined] }> {
  readonly address: SocketAddress;
  readonly iothread: IOThread;
  readonly #id: number;
  readonly #directory: PrivateDirectory | undefined;
  readonly #onCrash = (error: Error): void => this.#crashed(error);
  readonly #detach: () => void;
  /** @internal Runs once when it has ended. */
  onEnd: (() => void) | undefined;
  #stopping: Promise<void> | undefined;
  #ended = false;
  #last: VhostUserStats | undefined;

  /** @internal Use serveVhostUser(). */
  constructor(disk: Disk, reply: VhostUserStartReply, directory: PrivateDirectory | undefined) {
    super();
    this.iothread = disk.iothread;
    this.address = reply.address;
    this.#id = reply.service;
    this.#directory = directory;
    this.#detach = disk.dependOn(() => this.stop());
    this.iothread.on('crash', this.#onCrash);
    this.iothread.hold();
    this.iothread.listen(reply.service, (name, why) => this.#event(name, why));
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
    this.iothread.unhold();
    this.iothread.off('crash', this.#onCrash);
    this.iothread.listen(this.#id, undefined);
    this.#directory?.remove();
    this.onEnd?.();
    this.onEnd = undefined;
  }

  #crashed(error: Error): void {
    this.#end();
    if (this.listenerCount('crash') > 0) this.emit('crash', error);
  }

  #event(name: string, payload: unknown): void {
    if (name === 'client') this.emit('client');
    else if (name === 'disconnect') this.emit('disconnect', (payload as { readonly why: string | undefined }).why);
  }
}

/**
 * Serves a disk to virtual machines over vhost-user, one at a time; resolves once it accepts. Requests go from the
 * guest's memory to the image and back in the disk's own IOThread, which must run on io_uring (ENOTSUP otherwise).
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
  signal?.throwIfAborted();
  const [given] = await listenOf({ fd, socket });
  const directory = given ? undefined : new PrivateDirectory();
  const release = disk.hold();
  let service: VhostUserService | undefined;
  try {
    const reply = await disk.iothread.call('vhost-user-start', {
      disk: disk.id,
      listen: given ?? { kind: 'unix', path: `${directory!.path}/vhost-user.sock` },
      mode: options.socketMode ?? 0o600,
      writable: !(options.readOnly ?? disk.readOnly),
      queues: options.queues,
      blockSize: options.blockSize,
      serial: options.serial,
    });
    service = new VhostUserService(disk, reply, directory);
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
