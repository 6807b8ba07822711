/** A driver of a program's own, for the tests: a disk in memory that can be made to fail. */
import { BlockError, type Driver, type DriverNode, Errno, type Iov } from '../src/lib/driver-api.ts';

interface RamOptions {
  readonly size: number;
  /** What a read from 0 does: fails with EIO, or ends the whole thread. */
  readonly trouble?: 'error' | 'crash';
}

class RamNode implements DriverNode {
  readonly length: number;
  readonly #bytes: Uint8Array;
  readonly #trouble: RamOptions['trouble'];

  constructor({ size, trouble }: RamOptions) {
    this.length = size;
    this.#bytes = new Uint8Array(size);
    this.#trouble = trouble;
  }

  preadv(at: number, iov: Iov): void {
    if (at === 0 && this.#trouble === 'error') throw new BlockError(Errno.EIO, 'Could not read: no luck');
    if (at === 0 && this.#trouble === 'crash') {
      setImmediate(() => {
        throw new Error('out of luck');
      });
    }
    iov.copyFrom(this.#bytes.subarray(at, at + iov.length));
  }

  pwritev(at: number, iov: Iov): void {
    iov.copyTo(this.#bytes.subarray(at, at + iov.length));
  }
}

const driver: Driver<RamOptions> = {
  name: 'ram',
  role: 'protocol',
  options: {
    size: { type: 'size', required: true, help: 'size in bytes' },
    trouble: { type: 'enum', values: ['error', 'crash'], help: 'what a read from 0 does' },
  },
  open: (_context, options) => new RamNode(options),
};

export default driver;
