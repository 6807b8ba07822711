/** Copying images into one that may be made for it. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { alignUp, type Bytes, type Offset, SECTOR } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerOf } from '../block/copy-up.ts';
import type { CopySource } from '../jobs/block-copy.ts';
import { CopyJob } from '../jobs/copy-job.ts';
import type { Abortable } from '../lib/abort.ts';
import { checkBitmaps, copyBitmaps } from './bitmap-copy.ts';
import { localPath } from './create.ts';
import type { CreationOptions } from './creation-options.ts';
import { NewFile } from './new-file.ts';
import { offloadOf } from './offload.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import { OpenImages } from './open-set.ts';
import { runJob } from './run-job.ts';

export interface ConvertOptions extends Abortable {
  /** One behind the other in the target, each from a whole sector on. */
  readonly sources: readonly ImageSpec[];
  readonly sourceHow?: OpenHow | undefined;
  readonly target: ImageSpec;
  readonly targetHow?: OpenHow | undefined;
  /** What the new target is like; asked once the sources are open, and how large they are is known. Default: the target
   *  is there. */
  readonly create?: ((size: Bytes) => CreationOptions) | undefined;
  /** The target's backing file shows what layers below the source's own hold: only that one is copied. */
  readonly overBacking?: boolean | undefined;
  /** A target that is there reads as zeroes. */
  readonly targetIsZero?: boolean | undefined;
  /** Store clusters compressed. ENOTSUP for a target that cannot. */
  readonly compress?: boolean | undefined;
  /** Zeroes are left out in units of this, a power of two from 512 bytes to 256 KiB; 0 copies them. Default 4096. */
  readonly sparse?: Bytes | undefined;
  /** Requests at a time, 1 to 16; default 8. */
  readonly requests?: number | undefined;
  /** Writes may come in any order. */
  readonly unordered?: boolean | undefined;
  /** Have the system copy what it can, without looking for zeroes. */
  readonly offload?: boolean | undefined;
  /** Bytes a second at most; 0 (default) for as fast as it goes. */
  readonly speed?: Bytes | undefined;
  /** What cannot be read becomes zeroes, and is told of. */
  readonly salvage?: ((at: Offset, error: BlockError) => void) | undefined;
  /** Copy the persistent bitmaps, too. `onBroken` is told of one that cannot be; default: it is an error. */
  readonly bitmaps?: { readonly onBroken?: ((name: string) => void) | undefined } | undefined;
  readonly onProgress?: ((current: Bytes, total: Bytes) => void) | undefined;
}

/**
 * Copies images into one. Zeroes are not copied as data. A target that is made and does not become whole is taken away
 * again. What is thrown of a copy under way has `where.op` read or write, and where.
 */
export async function convert(context: AioContext, options: ConvertOptions): Promise<void> {
  await using images = new OpenImages(context);
  const sources: CopySource[] = [];
  let size = 0;
  for (const spec of options.sources) {
    const blk = await images.open(spec, options.sourceHow);
    sources.push({ blk, from: 0, length: blk.length, at: size });
    size += alignUp(blk.length, SECTOR);
  }
  if (options.bitmaps) checkBitmaps(sources[0]!.blk, options.bitmaps.onBroken);
  const { name } = options.target;
  const wanted = options.create?.(size);
  if (wanted === undefined) {
    await copyInto(images, sources, options);
    await images.close();
    return;
  }
  const file = await NewFile.create(context, name, wanted, options.targetHow?.objects);
  try {
    await copyInto(images, sources, { ...options, target: withKey(options.target, wanted) }, file);
    await images.close();
    file.filled();
  } catch (error) {
    await images.close().catch(() => undefined);
    await file.giveUp();
    throw error;
  }
}

/** The image that was made, with the key that it was made with. */
function withKey(target: ImageSpec, made: CreationOptions): ImageSpec {
  const secret = made.get('encrypt.key-secret');
  if (secret === undefined) return target;
  const file = { driver: 'file', filename: localPath(target.name) };
  return { name: `json:${JSON.stringify({ driver: made.format, 'encrypt.key-secret': secret, file })}` };
}

/** `made`: the target is new, and in a file it reads as zeroes where no backing file says otherwise. */
async function copyInto(
  images: OpenImages,
  sources: readonly CopySource[],
  options: ConvertOptions,
  made?: NewFile,
): Promise<void> {
  const target = await images.open(options.target, { ...options.targetHow, write: true });
  made?.filling();
  const last = sources.at(-1)!;
  if (alignUp(last.at + last.length, SECTOR) > target.length) {
    throw new BlockError(Errno.ENOSPC, 'output file is smaller than input file');
  }
  const { overBacking, compress, offload } = options;
  const below = layerOf(target.root!).cow?.node.length ?? 0;
  const job = new CopyJob(sources, target, {
    id: 'convert',
    sparse: options.sparse ?? 4096,
    targetIsZero: options.targetIsZero || (made?.isFile === true && (below === 0 || overBacking === true)),
    requests: options.requests ?? 8,
    ordered: !options.unordered,
    ...(overBacking ? { below } : {}),
    ...(compress ? { compressed: compressedUnit(target) } : {}),
    ...(offload ? { offload: offloadOf(sources, target) } : {}),
    salvage: options.salvage,
    speed: options.speed ?? 0,
    onProgress: options.onProgress,
  });
  await runJob(job, options);
  if (options.bitmaps) await copyBitmaps(sources[0]!.blk, target);
}

/** ENOTSUP where nothing can be stored compressed. */
function compressedUnit(target: BlockBackend): Bytes {
  const { impl, limits } = layerOf(target.root!);
  if (impl.writeCompressed) return limits.zeroAlignment;
  throw new BlockError(Errno.ENOTSUP, 'Compression not supported for this file format');
}
