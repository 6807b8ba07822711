/** A file that is about to hold a new image. */
import { existsSync, statSync } from 'node:fs';
import { truncate, unlink } from 'node:fs/promises';

/**
 * What is left of it when the image does not become whole: nothing. One that was not there is taken away, of one that
 * was there nothing is left in it; devices stay as they are.
 */
export class NewFile {
  readonly #path: string;
  readonly #fresh: boolean;

  /** Before the file is made. */
  constructor(path: string) {
    this.#path = path;
    this.#fresh = !existsSync(path);
  }

  /** Reads as zeroes where nothing was written. Once it is made. */
  get isFile(): boolean {
    return statSync(this.#path, { throwIfNoEntry: false })?.isFile() ?? false;
  }

  /** The image is half, and closed. */
  async giveUp(): Promise<void> {
    const gone = this.#fresh ? unlink(this.#path) : this.isFile ? truncate(this.#path) : undefined;
    await gone?.catch(() => undefined);
  }
}
