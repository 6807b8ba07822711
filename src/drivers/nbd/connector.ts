/** One attempt to reach the server: from the name of its host to the end of the handshake, in bounded time. */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import type { AioSocket, SocketAddress } from '../../aio/backend.ts';
import { coTimeout } from '../../aio/co-timeout.ts';
import type { AioContext } from '../../aio/context.ts';
import { checkAddress } from '../../aio/socket-address.ts';
import { SocketStream } from '../../aio/socket-stream.ts';
import { BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import type { Memory } from '../../base/memory.ts';
import type { Nanoseconds } from '../../base/units.ts';
import { SecureSocket } from '../../tls/secure-socket.ts';
import type { TlsSide } from '../../tls/side.ts';
import { CONNECTION_BYTES } from './connection.ts';
import { type ListedExport, listExports } from './export-listing.ts';
import { handshake, type ServerInfo } from './handshake.ts';
import { HANDSHAKE_SEND, type StartTls } from './option-talk.ts';
import type { NbdTarget } from './options.ts';

/** A name to look up, a connection to make and a handshake: each at most so long. */
const STEP_NS: Nanoseconds = 10e9;

export interface Connected {
  readonly socket: AioSocket;
  readonly memory: Memory;
  readonly server: ServerInfo;
}

export class Connector {
  readonly #aio: AioContext;
  readonly #target: NbdTarget;
  readonly #tls: TlsSide | undefined;
  /** Memory of connections that have ended. */
  readonly #memories: Memory[] = [];
  #socket: AioSocket | undefined;
  #closed = false;

  /** Reads the credentials where the target wants TLS; there are no connections without it then. */
  static async of(aio: AioContext, target: NbdTarget): Promise<Connector> {
    if (!target.tls) return new Connector(aio, target, undefined);
    // Node's TLS is loaded where it is used.
    const { clientSide } = await import('../../tls/side.ts');
    return new Connector(aio, target, await clientSide(target.tls.credentials, target.tls.host));
  }

  private constructor(aio: AioContext, target: NbdTarget, tls: TlsSide | undefined) {
    this.#aio = aio;
    this.#target = target;
    this.#tls = tls;
  }

  /** Throws BlockError: why it could not. One at a time. */
  async connect(): Promise<Connected> {
    return await this.#shakeHands(await this.#anySocket());
  }

  /** A connection that nobody wants any more has had this memory. */
  recycle(memory: Memory): void {
    this.#memories.push(memory);
  }

  /** An attempt that is under way fails soon; later ones at once. */
  close(): void {
    this.#closed = true;
    this.#socket?.shutdown();
  }

  /** By the first of the host's addresses that somebody listens on. */
  async #anySocket(): Promise<AioSocket> {
    let failure: unknown;
    for (const address of await this.#addresses()) {
      if (this.#closed) break;
      try {
        checkAddress(address, 'connect to');
        return await this.#oneSocket(address);
      } catch (error) {
        failure = error;
      }
    }
    throw failure ?? new BlockError(Errno.ECANCELED, 'the node was closed');
  }

  async #addresses(): Promise<readonly SocketAddress[]> {
    const { address } = this.#target;
    if (address.kind === 'unix') return [address];
    const { host, port } = address;
    if (isIP(host) !== 0) return [{ kind: 'inet', host, port }];
    const found = lookup(host, { all: true }).catch(() => {
      throw new BlockError(Errno.ENOENT, `there is no host '${host}'`);
    });
    const all = await coTimeout(this.#aio, found, STEP_NS, `find host '${host}'`);
    return all.map(({ address: literal }) => ({ kind: 'inet', host: literal, port }));
  }

  async #oneSocket(address: SocketAddress): Promise<AioSocket> {
    const connecting = this.#aio.backend.connect(address);
    try {
      return await coTimeout(this.#aio, connecting, STEP_NS, 'connect');
    } catch (error) {
      // One that comes too late.
      connecting.then((socket) => socket.close()).catch(() => undefined);
      throw new BlockError(errnoOf(error), errnoText(errnoOf(error)), { cause: error });
    }
  }

  async #shakeHands(plain: AioSocket): Promise<Connected> {
    const memory = this.#memories.pop() ?? this.#newMemory();
    try {
      const { socket, result } = await this.#talk(plain, memory, (stream, startTls) =>
        handshake(stream, this.#target, startTls),
      );
      return { socket, memory, server: result };
    } catch (error) {
      this.#memories.push(memory);
      throw error;
    }
  }

  /** What exports the server has. Throws as {@link connect} does. */
  async list(): Promise<ListedExport[]> {
    const { socket, result } = await this.#talk(await this.#anySocket(), this.#newMemory(), listExports);
    await socket.close();
    return result;
  }

  /** Runs `talk` with the server, in bounded time; the socket is closed when it fails. */
  async #talk<T>(
    plain: AioSocket,
    memory: Memory,
    talk: (stream: SocketStream, startTls: StartTls | undefined) => Promise<T>,
  ): Promise<{ readonly socket: AioSocket; readonly result: T }> {
    const tls = this.#tls;
    const secure = tls && new SecureSocket(this.#aio.backend, plain);
    const socket = secure ?? plain;
    const stream = new SocketStream(socket, memory, HANDSHAKE_SEND, 'the server has ended the connection');
    const deadline = this.#aio.timer(() => {
      stream.ended ??= 'the handshake took too long';
      socket.shutdown();
    }, 'nbd handshake deadline');
    deadline.armIn(STEP_NS);
    this.#socket = socket;
    if (this.#closed) socket.shutdown();
    try {
      const result = await talk(stream, secure && (() => secure.secure(tls!)));
      if (this.#closed) throw new BlockError(Errno.ECANCELED, 'the node was closed');
      return { socket, result };
    } catch (error) {
      await socket.close();
      throw error;
    } finally {
      this.#socket = undefined;
      deadline.cancel();
    }
  }

  #newMemory(): Memory {
    return this.#aio.backend.memory(new Uint8Array(new SharedArrayBuffer(CONNECTION_BYTES)));
  }
}
