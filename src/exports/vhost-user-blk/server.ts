/** A disk as a vhost-user-blk device: the socket that front-ends come to, one at a time. */
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { Gate, WaitOp } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, type Nanoseconds } from '../../base/units.ts';
import type { BackendUser, BlockBackend } from '../../block/backend.ts';
import { BlkDevice } from './device.ts';
import { Session } from './session.ts';

/** How long accepting rests after an error (out of descriptors, say). */
const ACCEPT_PAUSE_NS: Nanoseconds = 100e6;
/** As many as anybody gives a guest processors; a queue that is not used costs nothing. */
export const DEFAULT_QUEUES = 64;
export const MAX_QUEUES = 256;
const MAX_BLOCK_BYTES: Bytes = 4096;

export interface VhostUserBlkOptions {
  readonly writable: boolean;
  /** The most that a front-end may ask for. Default {@link DEFAULT_QUEUES}. */
  readonly queues?: number | undefined;
  /** Default 512. */
  readonly blockBytes?: Bytes | undefined;
  /** Guests see the first 20 bytes. */
  readonly serial?: string | undefined;
  /** Told when a front-end comes. */
  readonly onConnect?: (peer: string) => void;
  /** Told when it has gone; `why` when it did not simply leave. */
  readonly onDisconnect?: (peer: string, why: string | undefined) => void;
}

/** Home thread only. */
export class VhostUserBlkServer {
  readonly context: AioContext;
  readonly #blk: BlockBackend;
  readonly #device: BlkDevice;
  readonly #options: VhostUserBlkOptions;
  readonly #user: BackendUser;
  #listener: AioListener | undefined;
  #session: Session | undefined;
  #socket: AioSocket | undefined;
  #ended: Gate | undefined;
  #stopping: Promise<void> | undefined;
  #alarm: Gate | undefined;
  /** Front-ends that have come. */
  connections = 0;

  /** Throws ENOTSUP where the context's backend cannot (all but ring), EINVAL for options that cannot be. */
  constructor(context: AioContext, blk: BlockBackend, options: VhostUserBlkOptions) {
    const what = `Could not serve '${blk.name}' by vhost-user`;
    if (!context.backend.watchFd) throw new BlockError(Errno.ENOTSUP, `${what}: it needs io_uring`);
    const { queues = DEFAULT_QUEUES, blockBytes = 512, serial = '', writable } = options;
    if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
      throw new BlockError(Errno.EINVAL, `${what}: queues: ${queues} is not from 1 to ${MAX_QUEUES}`);
    }
    if (!isPowerOfTwo(blockBytes) || blockBytes < 512 || blockBytes > MAX_BLOCK_BYTES) {
      throw new BlockError(Errno.EINVAL, `${what}: block size: ${blockBytes} is not 512, 1024, 2048 or 4096`);
    }
    this.context = context;
    this.#blk = blk;
    this.#options = options;
    this.#device = new BlkDevice(context, blk, { writable, queues, blockBytes, serial });
    this.#user = {
      onResize: () => {
        this.#device.resized();
        this.#session?.configChanged();
      },
    };
    blk.users.add(this.#user);
  }

  /** True while a front-end is connected. */
  get connected(): boolean {
    return this.#session !== undefined;
  }

  /** Begins to take front-ends there; resolves to where it really listens. */
  async listen(address: SocketAddress | { readonly kind: 'fd'; readonly fd: number }, options?: ListenOptions) {
    const { backend } = this.context;
    const listener = await (address.kind === 'fd'
      ? backend.adoptListener(address.fd)
      : backend.listen(address, options));
    if (this.#stopping) {
      await listener.close();
      throw new BlockError(Errno.ESHUTDOWN, 'Could not listen: the vhost-user server is stopping');
    }
    this.#listener = listener;
    this.#ended = new Gate();
    this.context.run('vhost-user accept', () => this.#accept(listener));
    return listener.address;
  }

  /** Ends the session; requests in flight end and are shown to the guest before. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#alarm?.open();
    this.#socket?.shutdown();
    await this.#listener?.close();
    await this.#ended?.promise;
    this.#blk.users.delete(this.#user);
  }

  async #accept(listener: AioListener): Promise<void> {
    const op = new WaitOp();
    while (!this.#stopping) {
      const accepted = op.wait();
      listener.accept(op);
      const result = await accepted;
      if (result === -Errno.ECANCELED || result === -Errno.EBADF) break;
      if (result < 0) await this.#rest();
      else await this.serve(listener.takeAccepted());
    }
    this.#ended!.open();
  }

  async #rest(): Promise<void> {
    const gate = new Gate();
    this.#alarm = gate;
    const timer = this.context.timer(() => gate.open(), 'vhost-user accept pause');
    timer.armIn(ACCEPT_PAUSE_NS);
    await gate.promise;
    timer.cancel();
    this.#alarm = undefined;
  }

  /** Serves one connected front-end to its end, and closes the socket. One at a time. */
  async serve(socket: AioSocket): Promise<void> {
    const { peer } = socket;
    this.connections++;
    this.#options.onConnect?.(peer);
    let why: string | undefined;
    const session = new Session(this.#device, socket);
    this.#session = session;
    this.#socket = socket;
    this.#device.onBroken = (queue, text) => {
      why ??= `Queue ${queue} has stopped: ${text}`;
    };
    if (this.#stopping) socket.shutdown();
    const end = await session.run();
    this.#session = undefined;
    this.#socket = undefined;
    socket.shutdown();
    await socket.close();
    this.#options.onDisconnect?.(peer, why ?? end);
  }
}
