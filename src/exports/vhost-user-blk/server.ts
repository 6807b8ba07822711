/** A disk as a vhost-user-blk device: the socket that front-ends come to, one at a time. */
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { Gate, WaitOp } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, type Nanoseconds } from '../../base/units.ts';
import type { BackendUser, BlockBackend } from '../../block/backend.ts';
import { getsockopt } from '../../native/socket.ts';
import { DEFAULT_QUEUES } from '../../proto/virtio-blk/constants.ts';
import { BlkDevice } from './device.ts';
import { DeviceMessages, type QueueHost } from './device-messages.ts';
import { type MemberLink, QueueRouter } from './members.ts';
import { Session } from './session.ts';

/** How long accepting rests after an error (out of descriptors, say). */
const ACCEPT_PAUSE_NS: Nanoseconds = 100e6;
export const MAX_QUEUES = 256;
const MAX_BLOCK_BYTES: Bytes = 4096;

/** What the device is, in all threads that have queues of it. */
export interface DeviceShape {
  readonly writable: boolean;
  /** The most that a front-end may ask for. Default {@link DEFAULT_QUEUES}. */
  readonly queues?: number | undefined;
  /** Default 512. */
  readonly blockBytes?: Bytes | undefined;
  /** Guests see the first 20 bytes. */
  readonly serial?: string | undefined;
}

export interface VhostUserBlkOptions extends DeviceShape {
  /** Other threads that have queues of it, and by queue who: 0 for this thread, i for member i - 1. */
  readonly members?: { readonly links: readonly MemberLink[]; readonly placement: readonly number[] } | undefined;
  /** Told when a front-end comes. */
  readonly onConnect?: (peer: string) => void;
  /** Told when it has gone; `why` when it did not simply leave. */
  readonly onDisconnect?: (peer: string, why: string | undefined) => void;
}

/** A device of that shape. Throws ENOTSUP where the context's backend cannot (all but ring), EINVAL for a shape that
 *  cannot be. */
function deviceOf(context: AioContext, blk: BlockBackend, shape: DeviceShape): BlkDevice {
  const what = `Could not serve '${blk.name}' by vhost-user`;
  if (!context.backend.watchFd) throw new BlockError(Errno.ENOTSUP, `${what}: it needs io_uring`);
  const { queues = DEFAULT_QUEUES, blockBytes = 512, serial = '', writable } = shape;
  if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
    throw new BlockError(Errno.EINVAL, `${what}: queues: ${queues} is not from 1 to ${MAX_QUEUES}`);
  }
  if (!isPowerOfTwo(blockBytes) || blockBytes < 512 || blockBytes > MAX_BLOCK_BYTES) {
    throw new BlockError(Errno.EINVAL, `${what}: block size: ${blockBytes} is not 512, 1024, 2048 or 4096`);
  }
  return new BlkDevice(context, blk, { writable, queues, blockBytes, serial });
}

/** A device as a user of the disk, which may move to another thread and back. Home thread of the device only. */
export class DeviceUser {
  readonly device: BlkDevice;
  readonly #user: BackendUser;

  /** Throws as {@link VhostUserBlkServer}. `onResize`: the device has another size. */
  constructor(context: AioContext, blk: BlockBackend, shape: DeviceShape, onResize: () => void = () => undefined) {
    const device = deviceOf(context, blk, shape);
    this.device = device;
    this.#user = {
      onResize: () => {
        device.resized();
        onResize();
      },
      // Nothing is taken from the rings in a drained section: there is nothing to take along.
      cannotMove: () => undefined,
    };
    blk.users.add(this.#user);
  }

  serves(blk: BlockBackend): boolean {
    return this.device.blk === blk;
  }

  /** What shows `from` goes on with `to`, which shows the same disk. Nothing is in flight. */
  rehome(from: BlockBackend, to: BlockBackend): void {
    if (!this.serves(from)) return;
    from.users.delete(this.#user);
    this.device.blk = to;
    to.users.add(this.#user);
  }

  close(): void {
    this.device.blk.users.delete(this.#user);
  }
}

/** Home thread only. */
export class VhostUserBlkServer {
  readonly context: AioContext;
  readonly #user: DeviceUser;
  readonly #device: BlkDevice;
  readonly #options: VhostUserBlkOptions;
  readonly #host: QueueHost;
  readonly #links: readonly MemberLink[];
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
    this.context = context;
    this.#options = options;
    this.#user = new DeviceUser(context, blk, options, () => this.#session?.configChanged());
    this.#device = this.#user.device;
    const { links = [], placement = [] } = options.members ?? {};
    const own = new DeviceMessages(this.#device);
    this.#links = links;
    this.#host = links.length === 0 ? own : new QueueRouter(own, links, placement);
    // What it lacks from then on is more than a session can make up for.
    for (const link of links) link.onGone = () => this.#socket?.shutdown();
  }

  serves(blk: BlockBackend): boolean {
    return this.#user.serves(blk);
  }

  /** See {@link DeviceUser.rehome}. */
  rehome(from: BlockBackend, to: BlockBackend): void {
    this.#user.rehome(from, to);
  }

  /** True while a front-end is connected. */
  get connected(): boolean {
    return this.#session !== undefined;
  }

  /** Begins to take front-ends there; resolves to where it really listens. A descriptor may also be a socket that the
   *  only one there will be is connected to. */
  async listen(
    address: SocketAddress | { readonly kind: 'fd'; readonly fd: number },
    options?: ListenOptions,
  ): Promise<SocketAddress> {
    const { backend } = this.context;
    if (address.kind === 'fd' && getsockopt(address.fd, 'acceptconn') === 0) {
      const socket = await backend.adoptSocket(address.fd);
      this.#ended = new Gate();
      this.context.run('vhost-user front-end', async () => {
        await this.serve(socket);
        this.#ended!.open();
      });
      return { kind: 'unix', path: '' };
    }
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
    for (const link of this.#links) link.close();
    this.#user.close();
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
    const session = new Session(this.#device, socket, this.#host);
    this.#session = session;
    this.#socket = socket;
    const onBroken = (queue: number, text: string): void => {
      why ??= `Queue ${queue} has stopped: ${text}`;
    };
    this.#device.onBroken = onBroken;
    for (const link of this.#links) link.onBroken = onBroken;
    if (this.#stopping) socket.shutdown();
    const end = await session.run();
    this.#session = undefined;
    this.#socket = undefined;
    socket.shutdown();
    await socket.close();
    this.#options.onDisconnect?.(peer, why ?? end);
  }
}
