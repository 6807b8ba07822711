/**
 * The pool backend: node:fs and node:net, driven by libuv. It runs wherever node runs, which is what it is for: where
 * io_uring is refused (container profiles), on other systems, inside other programs' event loops.
 */
import type { Socket } from 'node:net';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Memory } from '../../base/memory.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';
import { native } from '../../native/lib.ts';
import { memoryOf } from '../../native/memory.ts';
import { releasePages } from '../../native/mmap.ts';
import type {
  AioBackend,
  AioFile,
  AioListener,
  AioSocket,
  ListenOptions,
  LoopHost,
  OpenFileOptions,
  SocketAddress,
} from '../backend.ts';
import type { AioOp } from '../op.ts';
import type { OpOwner } from '../op-table.ts';
import { checkAddress } from '../socket-address.ts';
import type { ThreadPool } from '../thread-pool.ts';
import { openPoolFile } from './file.ts';
import { adoptPoolListener, listenPool } from './listener.ts';
import { PoolLoop } from './loop.ts';
import { adoptPoolSocket, connectPool, socketOverStream } from './socket.ts';

/** Owner of what this backend has no means for. */
const UNSUPPORTED: OpOwner = { cancel: () => undefined, describe: () => 'poll of a descriptor' };

export class PoolBackend implements AioBackend {
  readonly name = 'pool';
  readonly detail: string;
  readonly wakeHandle = { kind: 'atomics' } as const;
  readonly #loop = new PoolLoop();

  /** `detail`: why this backend, for reports. */
  constructor(detail = 'node:fs and node:net') {
    this.detail = detail;
  }

  /** Its thread pool: file operations go through it; other work of the context may. */
  get threads(): ThreadPool {
    return this.#loop.threads;
  }

  now(): Nanoseconds {
    return this.#loop.now();
  }

  start(host: LoopHost): void {
    this.#loop.start(host);
  }

  wake(): void {
    this.#loop.wake();
  }

  poll(block: boolean): boolean {
    if (block) {
      throw new BlockError(
        Errno.ENOTSUP,
        "Could not wait in a synchronous turn: the pool backend is driven by node's loop",
      );
    }
    return this.#loop.poll();
  }

  stop(): Promise<void> {
    return this.#loop.stop();
  }

  abandon(): void {
    this.#loop.abandon();
  }

  memory(bytes: Uint8Array): Memory {
    // node itself needs no address; giving pages back does, and copies are quicker.
    if (native() && bytes.buffer instanceof SharedArrayBuffer) return memoryOf(bytes);
    return { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), address: 0 };
  }

  release(memory: Memory, at: number, length: Bytes): void {
    if (memory.address !== 0) releasePages(memory.address + at, length);
  }

  async openFile(path: string, options: OpenFileOptions): Promise<AioFile> {
    this.#assertRunning();
    return openPoolFile(this.#loop, path, options);
  }

  async listen(address: SocketAddress, options: ListenOptions = {}): Promise<AioListener> {
    this.#assertRunning();
    checkAddress(address, 'listen on');
    return listenPool(this.#loop, address, options);
  }

  async connect(address: SocketAddress): Promise<AioSocket> {
    this.#assertRunning();
    checkAddress(address, 'connect to');
    return connectPool(this.#loop, address);
  }

  async adoptSocket(fd: number, shared = false): Promise<AioSocket> {
    this.#assertRunning();
    return adoptPoolSocket(this.#loop, fd, shared);
  }

  async adoptListener(fd: number): Promise<AioListener> {
    this.#assertRunning();
    return adoptPoolListener(this.#loop, fd);
  }

  async fromStream(stream: Socket): Promise<AioSocket> {
    return socketOverStream(this.#loop, stream);
  }

  pollFd(op: AioOp, _fd: number, _events: number): void {
    if (this.#loop.begin(op, UNSUPPORTED)) this.#loop.end(op, -Errno.ENOTSUP);
  }

  cancel(op: AioOp): void {
    this.#loop.cancel(op);
  }

  #assertRunning(): void {
    if (!this.#loop.running) throw new BlockError(Errno.ESHUTDOWN, 'The AIO backend has stopped');
  }
}
