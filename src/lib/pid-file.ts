import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { lock } from '../native/lock.ts';

/** A file that says which process it is, for as long as that runs. It is locked, so that no two say so. */
export class PidFile {
  readonly #path: string;
  readonly #fd: number;

  /** Throws where it cannot be made. */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#fd = openSync(path, 'a+', 0o600);
    } catch (error) {
      const why = errnoText(errnoOf(error));
      throw new BlockError(errnoOf(error), `cannot create PID file: Could not create '${path}': ${why}`);
    }
    if (lock(this.#fd, 'write', 0, 0) !== -Errno.EAGAIN) return;
    closeSync(this.#fd);
    const why = errnoText(Errno.EAGAIN);
    throw new BlockError(Errno.EAGAIN, `cannot create PID file: Cannot lock '${path}': ${why}`);
  }

  write(pid: number): void {
    ftruncateSync(this.#fd);
    writeSync(this.#fd, `${pid}\n`);
  }

  remove(): void {
    rmSync(this.#path, { force: true });
    closeSync(this.#fd);
  }
}
