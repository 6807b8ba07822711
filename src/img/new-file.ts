/** A file that is about to hold a new image. */
import { existsSync, statSync } from 'node:fs';
import { truncate, unlink } from 'node:fs/promises';
import type { AioContext } from '../aio/context.ts';
import { BlockError } from '../base/errors.ts';
import { HalfImage } from '../lib/half-image.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import type { Format } from '../lib/options.ts';
import { createImage, localPath } from './create.ts';
import type { CreationOptions } from './creation-options.ts';

/** The image could not be made; nothing is there that was not there before. The cause says why. */
export class CreationFailure extends BlockError {
  declare readonly cause: BlockError;

  constructor(cause: BlockError) {
    super(cause.errno, cause.message, { where: cause.where, cause });
  }
}

/**
 * What is left of it when the image does not become whole: nothing. One that was not there is taken away, of one that
 * was there nothing is left in it; devices stay as they are.
 */
export class NewFile {
  readonly #path: string;
  readonly #format: string;
  readonly #fresh: boolean;
  #half: HalfImage | undefined;

  private constructor(path: string, format: string) {
    this.#path = path;
    this.#format = format;
    this.#fresh = !existsSync(path);
  }

  /** Makes the image in it. Throws {@link CreationFailure}. */
  static async create(
    context: AioContext,
    path: string,
    options: CreationOptions,
    objects: ObjectStore | undefined,
  ): Promise<NewFile> {
    try {
      const file = new NewFile(localPath(path), options.format);
      await createImage(context, path, options, { objects });
      return file;
    } catch (error) {
      throw error instanceof BlockError ? new CreationFailure(error) : error;
    }
  }

  /** Not a device: it reads as zeroes where nothing was written. */
  get isFile(): boolean {
    return statSync(this.#path, { throwIfNoEntry: false })?.isFile() ?? false;
  }

  /** The image is open, and about to be filled. */
  filling(): void {
    if (this.isFile) this.#half = HalfImage.of(this.#path, this.#format as Format);
  }

  /** The image is whole, and closed. */
  filled(): void {
    this.#half?.whole({ durable: false });
  }

  /** The image is half, and closed. */
  async giveUp(): Promise<void> {
    const gone = this.#fresh ? unlink(this.#path) : this.isFile ? truncate(this.#path) : undefined;
    await gone?.catch(() => undefined);
  }
}
