/** An image that is being filled, and would be taken for whole by whoever finds it after this process was killed. */
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import type { Format } from './options.ts';

/** Of the format's name at the beginning of the file. */
const MAGIC_BYTES = 4;

/**
 * Withholds the name of the format from the file of a new image that is open, and does not read its header again:
 * until {@link whole} it is of no format. Of formats that say in the file what they are; a raw one cannot.
 */
export class HalfImage {
  readonly #path: string;
  readonly #magic: Uint8Array;

  private constructor(path: string, magic: Uint8Array) {
    this.#path = path;
    this.#magic = magic;
  }

  static of(path: string, format: Format): HalfImage | undefined {
    if (format === 'raw') return undefined;
    const magic = new Uint8Array(MAGIC_BYTES);
    withFile(path, (fd) => {
      readSync(fd, magic, 0, MAGIC_BYTES, 0);
      writeSync(fd, new Uint8Array(MAGIC_BYTES), 0, MAGIC_BYTES, 0);
    });
    return new HalfImage(path, magic);
  }

  /** It is, and closed. With `durable` that is on stable storage. */
  whole({ durable }: { readonly durable: boolean }): void {
    withFile(this.#path, (fd) => {
      writeSync(fd, this.#magic, 0, MAGIC_BYTES, 0);
      if (durable) fsyncSync(fd);
    });
  }
}

function withFile(path: string, body: (fd: number) => void): void {
  const fd = openSync(path, 'r+');
  try {
    body(fd);
  } finally {
    closeSync(fd);
  }
}
