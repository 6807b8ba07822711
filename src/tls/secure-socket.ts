/**
 * A socket on which TLS may begin: who holds it sees one AioSocket before and after. Plain sockets are not wrapped.
 * At that moment the connection leaves the backend as a stream of Node's, and comes back as the stream inside.
 */
import type { Socket } from 'node:net';
import type { AioBackend, AioSocket } from '../aio/backend.ts';
import type { AioOp } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { TlsSide } from './side.ts';

export class SecureSocket implements AioSocket {
  readonly #backend: AioBackend;
  #inner: AioSocket;
  /** Not undefined in the handshake, and after one that failed. */
  #stream: Socket | undefined;
  #shut = false;

  constructor(backend: AioBackend, socket: AioSocket) {
    this.#backend = backend;
    this.#inner = socket;
    this.peer = socket.peer;
  }

  readonly peer: string;

  /**
   * Begins TLS. No operation may be pending, and none may be begun until it resolves. Rejects with BlockError, whose
   * message is the end of a sentence that begins with the peer; there is only {@link close} then. {@link shutdown} ends
   * it early. ENOTSUP where the backend has no streams.
   */
  async secure(side: TlsSide): Promise<void> {
    if (!this.#inner.toStream || !this.#backend.fromStream) {
      throw new BlockError(Errno.ENOTSUP, 'TLS is not possible on this backend');
    }
    if (this.#shut) throw new BlockError(Errno.ECANCELED, 'the connection was closed');
    const stream = await this.#inner.toStream();
    this.#stream = stream;
    // A shutdown may have come in each of these waits: it could not end a stream that it did not know.
    if (this.#shut) stream.destroy();
    const secured = await side.handshake(stream);
    this.#inner = await this.#backend.fromStream(secured);
    this.#stream = undefined;
    if (this.#shut) {
      this.#inner.shutdown();
      throw new BlockError(Errno.ECANCELED, 'the connection was closed');
    }
  }

  recv(op: AioOp, memory: Memory, at: number, length: number, all: boolean): void {
    this.#inner.recv(op, memory, at, length, all);
  }

  send(op: AioOp, iov: Iov): void {
    this.#inner.send(op, iov);
  }

  sendAfter(op: AioOp, iov: Iov, first: AioOp): boolean {
    return this.#inner.sendAfter(op, iov, first);
  }

  shutdown(): void {
    this.#shut = true;
    if (this.#stream) this.#stream.destroy();
    else this.#inner.shutdown();
  }

  async close(): Promise<void> {
    if (this.#stream) this.#stream.destroy();
    else await this.#inner.close();
  }
}
