/** An eventfd of somebody else's that is watched, or signalled, on the ring, and closed when the ring has let go. */
import { assert } from '../base/assert.ts';
import { Errno } from '../base/errors.ts';
import type { AioBackend } from './backend.ts';
import { AioOp } from './op.ts';

/** Calls `onReady` whenever something is added to `fd`, until {@link close}. Takes over the descriptor. */
export class FdWatch extends AioOp {
  readonly fd: number;
  readonly #backend: AioBackend;
  readonly #closeFd: (fd: number) => void;
  readonly #onReady: () => void;
  #closing = false;

  constructor(backend: AioBackend, fd: number, closeFd: (fd: number) => void, onReady: () => void) {
    assert(backend.watchFd, 'this backend watches no descriptors');
    super();
    this.quiet = true;
    this.fd = fd;
    this.#backend = backend;
    this.#closeFd = closeFd;
    this.#onReady = onReady;
    backend.watchFd(this, fd);
  }

  complete(result: number): void {
    if (this.slot >= 0) {
      if (!this.#closing) this.#onReady();
    } else if (this.#closing) this.#closeFd(this.fd);
    else if (result >= 0 || result === -Errno.EAGAIN) {
      this.#onReady();
      this.#backend.watchFd!(this, this.fd);
    }
  }

  /** Never waits: the descriptor is closed once the ring has let go of it. */
  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    if (this.slot >= 0) this.#backend.cancel(this);
    else this.#closeFd(this.fd);
  }
}

/** Adds to an eventfd by the ring: whoever else has the descriptor may fill its count and make it block, at any time,
 *  and the loop must not wait for that. What is asked for while a signal is under way is one signal more. */
export class FdSignal extends AioOp {
  readonly fd: number;
  readonly #backend: AioBackend;
  readonly #closeFd: (fd: number) => void;
  #busy = false;
  #again = false;
  #closing = false;

  constructor(backend: AioBackend, fd: number, closeFd: (fd: number) => void) {
    assert(backend.signalFd, 'this backend signals no descriptors');
    super();
    this.quiet = true;
    this.fd = fd;
    this.#backend = backend;
    this.#closeFd = closeFd;
  }

  signal(): void {
    if (this.#busy) {
      this.#again = true;
      return;
    }
    this.#busy = true;
    this.#backend.signalFd!(this, this.fd);
  }

  complete(): void {
    // An error says that the count is full: then the other side has been told already.
    this.#busy = false;
    const again = this.#again;
    this.#again = false;
    if (this.#closing) this.#closeFd(this.fd);
    else if (again) this.signal();
  }

  /** Never waits: the descriptor is closed once the ring has let go of it. */
  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    if (this.#busy) this.#backend.cancel(this);
    else this.#closeFd(this.fd);
  }
}
