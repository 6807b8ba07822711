/** Bytes, and the descriptors that come along with them, over a unix socket. Control path: with promises. */
import { BlockError, Errno } from '../base/errors.ts';
import { recvFds, sendFds } from '../native/socket.ts';
import type { AioSocket } from './backend.ts';
import type { AioContext } from './context.ts';
import { WaitOp } from './op.ts';

const POLLIN = 1;
const POLLOUT = 4;

/** One reader and one sender at a time. Home thread only. */
export class FdStream {
  readonly #context: AioContext;
  readonly #fd: number;
  readonly #readable = new WaitOp();
  readonly #writable = new WaitOp();

  /** The socket stays the caller's; its shutdown ends what waits here. Throws ENOTSUP where descriptors cannot be
   *  passed. */
  constructor(context: AioContext, socket: AioSocket) {
    this.#context = context;
    if (socket.fd === undefined) throw new BlockError(Errno.ENOTSUP, 'this backend passes no descriptors');
    this.#fd = socket.fd;
  }

  /** Exactly `length` bytes; undefined when the stream ends before. Descriptors are added to `fds`, which are the
   *  caller's to close, also after a failure; EPROTO when there would be more than `limit` in it. */
  async read(length: number, fds: number[], limit: number): Promise<Uint8Array | undefined> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const received = recvFds(this.#fd, length - done, limit - fds.length);
      if (received === -Errno.EAGAIN || received === -Errno.EINTR) {
        if ((await this.#poll(this.#readable, POLLIN)) < 0) return undefined;
        continue;
      }
      if (typeof received === 'number') return undefined;
      fds.push(...received.fds);
      if (received.truncated) {
        throw new BlockError(Errno.EPROTO, 'Could not read a message: it has too many descriptors');
      }
      if (received.bytes.length === 0) return undefined;
      bytes.set(received.bytes, done);
      done += received.bytes.length;
    }
    return bytes;
  }

  /** Sends all of it; the descriptors stay the caller's. 0, or a negative errno when the stream has ended. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<number> {
    for (let done = 0; done < bytes.length; ) {
      const sent = sendFds(this.#fd, bytes.subarray(done), done === 0 ? fds : []);
      if (sent >= 0) done += sent;
      else if (sent !== -Errno.EAGAIN && sent !== -Errno.EINTR) return sent;
      else {
        const ready = await this.#poll(this.#writable, POLLOUT);
        if (ready < 0) return ready;
      }
    }
    return 0;
  }

  #poll(op: WaitOp, events: number): Promise<number> {
    const result = op.wait();
    this.#context.backend.pollFd(op, this.#fd, events);
    return result;
  }
}
