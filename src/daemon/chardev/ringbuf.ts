import { QmpError } from '../../qmp/errors.ts';
import { SinkChardev } from './chardev.ts';

const DEFAULT_BYTES = 65_536;
const BYTES_MAX = 2 ** 26;

/** The last bytes that were written, until they are read. */
export class RingbufChardev extends SinkChardev {
  readonly #bytes: Uint8Array;
  /** Bytes written and read since the beginning. */
  #written = 0;
  #read = 0;

  constructor(size = DEFAULT_BYTES) {
    if (size <= 0 || size > BYTES_MAX || (size & (size - 1)) !== 0) {
      throw new QmpError('size of ringbuf chardev must be power of two');
    }
    super('ringbuf', (text) => this.write(new TextEncoder().encode(text)));
    this.#bytes = new Uint8Array(size);
  }

  write(bytes: Uint8Array): void {
    const { length } = this.#bytes;
    for (const byte of bytes) this.#bytes[this.#written++ % length] = byte;
    // What was not read in time is gone.
    this.#read = Math.max(this.#read, this.#written - length);
  }

  read(most: number): Uint8Array {
    const count = Math.min(most, this.#written - this.#read);
    const { length } = this.#bytes;
    return Uint8Array.from({ length: count }, () => this.#bytes[this.#read++ % length]!);
  }
}
