/**
 * virtio-blk-vhost-user: a disk that any vhost-user-blk back-end serves, with this node as its driver. What is read and
 * written goes through memory that both share, so it is copied once, and the caller's memory may be any. No page cache
 * of this side is involved: cache.direct makes no difference.
 */
import type { AioOp } from '../../aio/op.ts';
import { BlockError, Errno, ioError } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import {
  type Driver,
  type DriverNode,
  type Limits,
  type OpenContext,
  RequestFlags,
  type Supported,
} from '../../block/driver.ts';
import { BlkRequestType, SEGMENT_UNMAP } from '../../proto/virtio-blk/constants.ts';
import { VHOST_USER_OPTIONS, type VhostUserOptions, vhostUserTarget } from './options.ts';
import { Session } from './session.ts';

/** Of the caller's memory, which is copied run by run. */
const IOV_RUNS_MAX = 1024;

class VhostUserNode implements DriverNode {
  readonly limits: Partial<Limits>;
  readonly readOnly: boolean;
  readonly #session: Session;
  readonly #path: string;

  constructor(session: Session, path: string, readOnly: boolean) {
    this.#session = session;
    this.#path = path;
    this.readOnly = readOnly;
    const { blockBytes, maxTransfer, maxDiscard, maxZero, discardAlignment, optimal } = session.info;
    this.limits = {
      ...{ alignment: blockBytes, optimal, maxTransfer, maxIov: IOV_RUNS_MAX },
      ...{ maxZero, maxDiscard, discardAlignment },
    };
  }

  get length(): Bytes {
    return this.#session.bytes;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    this.#submit(op, BlkRequestType.IN, iov, at);
  }

  submitWrite(op: AioOp, iov: Iov, at: Offset): void {
    this.#submit(op, BlkRequestType.OUT, iov, at);
  }

  #submit(op: AioOp, type: number, iov: Iov, at: Offset): void {
    const command = this.#session.take();
    command.op = op;
    command.type = type;
    command.at = at;
    command.length = iov.length;
    command.iov = iov;
    this.#session.submit(command);
  }

  /** How quickly the device does it is not known. */
  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    if (this.#session.info.maxZero === 0 || (flags & RequestFlags.NO_FALLBACK) !== 0) return 'unsupported';
    const unmap = (flags & RequestFlags.MAY_UNMAP) === 0 ? 0 : SEGMENT_UNMAP;
    return this.#change(BlkRequestType.WRITE_ZEROES, at, length, unmap, 'zero');
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    if (this.#session.info.maxDiscard === 0) return 'unsupported';
    return this.#change(BlkRequestType.DISCARD, at, length, 0, 'discard');
  }

  async #change(type: number, at: Offset, length: Bytes, flags: number, verb: string): Promise<Supported> {
    const result = await this.#session.run(type, at, length, flags);
    if (result === -Errno.ENOTSUP) return 'unsupported';
    if (result < 0) throw this.#failed(`${verb} ${length} bytes at ${at} of`, result);
    return 'done';
  }

  async flush(): Promise<void> {
    if (!this.#session.info.flushes) return;
    const result = await this.#session.run(BlkRequestType.FLUSH, 0, 0, 0);
    if (result < 0) throw this.#failed('flush', result);
  }

  info(): Record<string, unknown> {
    const { connected, queues } = this.#session;
    return { path: this.#path, connected, queues };
  }

  /** A back-end serves one front-end at a time: the other thread's is next. */
  async inactivate(): Promise<Record<string, unknown>> {
    await this.#session.rest();
    return {};
  }

  activate(): Promise<void> {
    return this.#session.open();
  }

  close(): Promise<void> {
    return this.#session.rest();
  }

  #failed(what: string, errno: number): BlockError {
    return ioError(errno, `Could not ${what} '${this.#path}'`, { path: this.#path });
  }
}

async function open(context: OpenContext, options: VhostUserOptions): Promise<DriverNode> {
  const target = vhostUserTarget(options);
  const { path } = target;
  const refuse = (errno: number, why: string): BlockError =>
    new BlockError(errno, `Could not open '${path}': ${why}`, { where: { path, op: 'open' } });
  if (!context.aio.backend.watchFd) throw refuse(Errno.ENOTSUP, 'vhost-user needs io_uring');
  let opened = false;
  const session = new Session(context.aio, target, () => {
    if (opened) context.resized();
  });
  await session.open();
  const sealed = session.info.readOnly;
  if (sealed && !context.readOnly && !context.common['auto-read-only']) {
    await session.rest();
    throw refuse(Errno.EACCES, 'the back-end has it read-only');
  }
  opened = true;
  return new VhostUserNode(session, path, sealed || context.readOnly);
}

export const virtioBlkVhostUserDriver: Driver<VhostUserOptions> = {
  name: 'virtio-blk-vhost-user',
  role: 'protocol',
  options: VHOST_USER_OPTIONS,
  open,
};
