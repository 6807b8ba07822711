/** Giving an image another backing file. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { firstDifference, Iov, type Memory } from '../base/memory.ts';
import { type Bytes, GiB, MiB, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { amend } from '../block/control.ts';
import { layerOf } from '../block/copy-up.ts';
import { RequestFlags } from '../block/driver.ts';
import { BlockStatus } from '../block/status.ts';
import type { Abortable } from '../lib/abort.ts';
import type { CacheMode } from '../lib/options.ts';
import { backingPath } from './backing.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import { OpenImages } from './open-set.ts';

const PIECE_BYTES: Bytes = 2 * MiB;
const STATUS_BYTES: Bytes = GiB;

export interface RebaseOptions extends Abortable {
  readonly image: ImageSpec;
  readonly how?: OpenHow | undefined;
  /** What the image is to name, as it is to name it; an empty name for no backing file. */
  readonly backing: { readonly name: string; readonly format?: string | undefined };
  readonly backingCache?: CacheMode | undefined;
  /** The image is only told so: what is below reads the same, or does not matter. It is not opened. */
  readonly unsafe?: boolean | undefined;
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
}

/** The new backing file could not be opened: the cause says why. */
export class NewBackingFailure extends BlockError {
  constructor(name: string, cause: BlockError) {
    super(cause.errno, `Could not open new backing file '${name}': ${cause.message}`, { cause });
  }
}

/**
 * Makes an image name another backing file. What reads otherwise with that is copied into the image before, cluster by
 * cluster; an image that is interrupted has its old backing file, and reads as it did.
 */
export async function rebase(context: AioContext, options: RebaseOptions): Promise<void> {
  const { image, how, backing, unsafe } = options;
  await using images = new OpenImages(context);
  const blk = await images.open(image, { ...how, write: true, alone: unsafe });
  if (!unsafe) {
    const below = backing.name === '' ? undefined : await openBelow(images, options);
    await new Rebaser(blk, below, options).run();
    await blk.flush();
  }
  if (backing.name !== '' && backing.format === undefined) {
    throw refusal(Errno.EINVAL, backing.name, 'backing format must be specified');
  }
  const name = backing.name === '' ? null : backing.name;
  const format = name === null ? null : (backing.format ?? null);
  await amend(blk, { 'backing-file': name, 'backing-fmt': format }).catch((error: unknown) => {
    throw error instanceof BlockError ? refusal(error.errno, backing.name, undefined, error) : error;
  });
  await images.close();
}

function refusal(errno: number, name: string, why?: string, cause?: BlockError): BlockError {
  const message = `Could not change the backing file to '${name}'`;
  return new BlockError(errno, why === undefined ? message : `${message}: ${why}`, { where: { op: 'rebase' }, cause });
}

async function openBelow(
  images: OpenImages,
  { image, how, backing, backingCache }: RebaseOptions,
): Promise<BlockBackend> {
  const name = backingPath(image.name, backing.name);
  try {
    return await images.open(
      { name, format: backing.format },
      { cache: backingCache, forceShare: how?.forceShare, objects: how?.objects },
    );
  } catch (error) {
    throw error instanceof BlockError ? new NewBackingFailure(backing.name, error) : error;
  }
}

class Rebaser {
  readonly #blk: BlockBackend;
  readonly #below: BlockBackend | undefined;
  readonly #options: RebaseOptions;
  readonly #unit: Bytes;
  readonly #memory: Memory;

  constructor(blk: BlockBackend, below: BlockBackend | undefined, options: RebaseOptions) {
    this.#blk = blk;
    this.#below = below;
    this.#options = options;
    const { zeroAlignment, optimal } = layerOf(blk.root!).limits;
    this.#unit = Math.min(PIECE_BYTES, Math.max(zeroAlignment, optimal, 1));
    // One half for what the image reads as now, one for what is to be below it.
    const bytes = new Uint8Array(new SharedArrayBuffer(2 * PIECE_BYTES));
    this.#memory = blk.context.backend.memory(bytes);
  }

  /** Copies what only the old backing file holds and the new one does not hold alike. */
  async run(): Promise<void> {
    const { length } = this.#blk;
    const status = new BlockStatus();
    for (let at = 0; at < length; at += status.length) {
      this.#options.signal?.throwIfAborted();
      await this.#blk.blockStatus(at, Math.min(length - at, STATUS_BYTES), status);
      const { depth, zero } = status;
      if (depth !== 1) await this.#extent(at, at + status.length, zero);
      this.#options.onProgress?.(at + status.length, length);
    }
  }

  async #extent(from: Offset, to: Offset, zero: boolean): Promise<void> {
    for (let at = from; at < to; ) {
      this.#options.signal?.throwIfAborted();
      const length = Math.min(to - at, PIECE_BYTES - (at % PIECE_BYTES));
      const belowZero = await this.#readBelow(at, length);
      if (!(zero && belowZero)) {
        await this.#read(this.#blk, at, 0, length);
        await this.#write(at, length);
      }
      at += length;
    }
  }

  /** True where it is known to be zeroes; they are in the memory even so. */
  async #readBelow(at: Offset, length: Bytes): Promise<boolean> {
    const below = this.#below;
    const inside = below === undefined ? 0 : Math.max(0, Math.min(length, below.length - at));
    this.#memory.bytes.fill(0, PIECE_BYTES + inside, PIECE_BYTES + length);
    if (below === undefined || inside === 0) return true;
    await this.#read(below, at, PIECE_BYTES, inside);
    return false;
  }

  #read(blk: BlockBackend, at: Offset, place: number, length: Bytes): Promise<void> {
    return blk.read(at, Iov.of(this.#memory, place, length));
  }

  /** Writes the clusters that differ, neighbours at once. */
  async #write(from: Offset, length: Bytes): Promise<void> {
    for (let at = 0; at < length; ) {
      let end = this.#unitEnd(from, at, length);
      if (this.#same(at, end)) {
        at = end;
        continue;
      }
      while (end < length && !this.#same(end, this.#unitEnd(from, end, length))) end = this.#unitEnd(from, end, length);
      const iov = Iov.of(this.#memory, at, end - at);
      if (iov.isZero()) await this.#blk.writeZeroes(from + at, end - at, RequestFlags.OWN);
      else await this.#blk.write(from + at, iov);
      at = end;
    }
  }

  #unitEnd(from: Offset, at: Bytes, length: Bytes): Bytes {
    return Math.min(length, at + this.#unit - ((from + at) % this.#unit));
  }

  #same(from: Bytes, to: Bytes): boolean {
    const { bytes } = this.#memory;
    return firstDifference(bytes.subarray(from, to), bytes.subarray(PIECE_BYTES + from, PIECE_BYTES + to)) < 0;
  }
}
