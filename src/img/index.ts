/**
 * What image tools do, as functions: those of `qemu-img`, for programs. They run in a thread of their own and answer an
 * {@link Operation}, which is a promise and, for whoever iterates over it, the progress.
 *
 * ```ts
 * import { compare, convert, map } from 'blockplane/img';
 *
 * const conversion = convert('disk.raw', 'disk.qcow2', { compress: true, signal: AbortSignal.timeout(60_000) });
 * for await (const { current, total } of conversion) console.log(`${Math.floor((100 * current) / total)} %`);
 * for await (const { start, length, data } of map('disk.qcow2')) console.log(start, length, data);
 * console.log(await compare('disk.raw', 'disk.qcow2'));
 * ```
 *
 * An image is a path or URL, whose format is qcow2 where it ends with `.qcow2` and raw elsewhere; `{ name, format }`
 * says otherwise, and the format `probe` looks at its first bytes (not for disks that guests write as raw). A tree of
 * options works as well. Unlike `open`, these functions follow the names that images hold wherever they lead, but not
 * to protocols: they are for images of your own. They throw BlockError, and a signal's reason.
 */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { Abortable } from '../lib/abort.ts';
import { type AmendOptions, driverOptions, type ImageOptions } from '../lib/image-options.ts';
import type { ImageInfo } from '../lib/inspect.ts';
import type { ObjectOptions } from '../lib/objects/types.ts';
import { type BlockdevOptions, type CacheMode, type Format, formatByName, formatToMake } from '../lib/options.ts';
import type { BitmapAction } from './bitmap.ts';
import type { Comparison } from './compare.ts';
import type { ConvertOptions } from './convert.ts';
import { operation } from './img-engine.ts';
import type { Creation } from './img-messages.ts';
import type { MapExtent } from './map.ts';
import type { Measurement } from './measure.ts';
import type { ImageSpec } from './open.ts';
import type { Operation } from './operation.ts';

export type { Bytes, Offset } from '../base/units.ts';
export { type CheckImageOptions, type CreateOptions, check, create } from '../lib/images.ts';
export type { BitmapAction } from './bitmap.ts';
export type { Comparison } from './compare.ts';
export type { MapExtent } from './map.ts';
export type { Measurement } from './measure.ts';
export { Operation, type Progress } from './operation.ts';
export type { AmendOptions, BlockdevOptions, CacheMode, Format, ImageInfo, ImageOptions, ObjectOptions };

/** A path or URL; the same with a format; or a tree of options. */
export type Image =
  | string
  | { readonly name: string; readonly format?: Format | 'probe' | undefined }
  | BlockdevOptions;

export interface ImgSettings extends Abortable {
  /** Secrets and credentials that trees of options name by their ids. */
  readonly objects?: readonly ObjectOptions[] | undefined;
  /** Default: writeback; `unsafe` for images that are made. */
  readonly cache?: CacheMode | undefined;
}

export interface ReadSettings extends ImgSettings {
  /** Whatever locks others hold. */
  readonly forceShare?: boolean | undefined;
  /** Name or id of an internal snapshot to look at instead of the disk. */
  readonly snapshot?: string | undefined;
}

/** What a new image is to be like. */
export interface NewImage {
  /** Default: qcow2 for a name that ends with .qcow2, else raw. */
  readonly format?: 'raw' | 'qcow2' | undefined;
  readonly create?: Omit<ImageOptions, 'size'> | undefined;
}

/** What an image says of itself; no name in it is followed. Its format is found by its first bytes. */
export function info(image: Image, options: Omit<ReadSettings, 'snapshot'> = {}): Operation<ImageInfo> {
  return operation('info', { image: specOf(image, 'probe'), how: howOf(options) }, options);
}

/** {@link info} of an image and of all that are below it, in their order. ELOOP for a chain without an end. */
export function infoChain(image: Image, options: Omit<ReadSettings, 'snapshot'> = {}): Operation<ImageInfo[]> {
  return operation('chain', { image: specOf(image, 'probe'), how: howOf(options) }, options);
}

/** Of the conversion itself. */
type Conversion = Pick<
  ConvertOptions,
  'targetIsZero' | 'compress' | 'sparse' | 'requests' | 'unordered' | 'offload' | 'speed'
>;

export interface ConvertSettings extends ReadSettings, NewImage, Conversion {
  /** How the target is opened. Default: unsafe, and flushed at the end. */
  readonly targetCache?: CacheMode | undefined;
  /** The target is there, and is written into. */
  readonly existing?: boolean | undefined;
  /** What cannot be read becomes zeroes; it is told of. */
  readonly onUnreadable?: ((at: Offset, errno: number) => void) | undefined;
  /** Copy the persistent bitmaps as well: all, or those that can be (`onBroken` is told of the others). */
  readonly bitmaps?: 'all' | 'skip-broken' | undefined;
  readonly onBroken?: ((name: string) => void) | undefined;
}

/**
 * Copies an image, or several one behind the other, into one that is made, and taken away again when that fails. Zeroes
 * are not copied as data. With `create.backingFile` only what the source's own layer holds is copied.
 */
export function convert(
  source: Image | readonly Image[],
  target: Image,
  options: ConvertSettings = {},
): Operation<void> {
  const { targetCache, existing = false, targetIsZero, onUnreadable, onBroken, bitmaps, format, create } = options;
  const { compress, sparse, requests, unordered, offload, speed } = options;
  refuse(offload && (compress || sparse !== undefined || onUnreadable), "'offload' goes with none of its alternatives");
  refuse(targetIsZero && !existing, "'targetIsZero' is for targets that are there");
  refuse(existing && create, "'create' is for targets that are made");
  const { made, secrets = [] } = existing ? {} : creationOf(target, { format, create });
  const into = specOf(target, made?.format as Format | undefined);
  return operation(
    'convert',
    {
      ...{ compress, sparse, requests, unordered, offload, speed, targetIsZero },
      sources: listOf(source).map((one) => specOf(one)),
      sourceHow: howOf(options),
      target: format === undefined ? into : { ...into, format },
      targetHow: { cache: targetCache ?? 'unsafe' },
      create: made,
      overBacking: create?.backingFile !== undefined,
      salvage: onUnreadable !== undefined,
      bitmaps: bitmaps === 'skip-broken' ? 'skip' : bitmaps,
    },
    {
      signal: options.signal,
      objects: [...(options.objects ?? []), ...secrets],
      salvaged: ({ at, errno }) => onUnreadable?.(at, errno),
      'broken-bitmap': ({ name }) => onBroken?.(name),
    },
  );
}

/** Extents that are asked for at a time. */
const MAP_PAGE = 65_536;

/** What the layers of an image hold, and where: neighbours of one kind as one. */
export async function* map(
  image: Image,
  options: ReadSettings & { readonly start?: Offset | undefined; readonly length?: Bytes | undefined } = {},
): AsyncGenerator<MapExtent, void, undefined> {
  const { start = 0, length } = options;
  const end = length === undefined ? undefined : start + length;
  const how = { ...howOf(options), shareWrites: true };
  for (let at = start; end === undefined || at < end; ) {
    const left = end === undefined ? undefined : end - at;
    const extents = await operation(
      'map',
      { image: specOf(image), how, start: at, length: left, most: MAP_PAGE },
      options,
    );
    const last = extents.length < MAP_PAGE;
    // The last one may go on.
    for (const extent of last ? extents : extents.slice(0, -1)) yield extent;
    if (last) return;
    at = extents.at(-1)!.start;
  }
}

/**
 * Compares two disks up to their first difference. A longer one is the same if it goes on with zeroes, unless `strict`:
 * then sizes and what is allocated have to be the same as well.
 */
export function compare(
  first: Image,
  second: Image,
  options: Omit<ReadSettings, 'snapshot'> & { readonly strict?: boolean | undefined } = {},
): Operation<Comparison> {
  const { strict } = options;
  return operation('compare', { images: [specOf(first), specOf(second)], strict, how: howOf(options) }, options);
}

/** Changes the size of a disk, to so many bytes or by so many; answers what it is then. */
export function resize(
  image: Image,
  size: Bytes | { readonly by: Bytes },
  options: ImgSettings & {
    /** It is meant that the disk becomes smaller. */
    readonly shrink?: boolean | undefined;
    readonly preallocation?: 'off' | 'falloc' | 'full' | undefined;
  } = {},
): Operation<Bytes> {
  const change = typeof size === 'number' ? size : size.by;
  const sign = typeof size === 'number' ? undefined : change < 0 ? ('-' as const) : ('+' as const);
  const { shrink, preallocation } = options;
  const args = { image: specOf(image), how: howOf(options), bytes: Math.abs(change), sign, shrink, preallocation };
  refuse(typeof size === 'number' && size < 0, 'a size is not negative');
  return operation('resize', args, options);
}

/** Makes an internal snapshot, goes back to one (name or id), or deletes one (name); {@link info} lists them. */
export function snapshot(
  image: Image,
  action: 'create' | 'apply' | 'delete',
  which: string,
  options: ImgSettings = {},
): Operation<void> {
  return operation('snapshot', { image: specOf(image), how: howOf(options), action, which }, options);
}

/**
 * Gives an image another backing file, or with null none. What reads otherwise with that is copied into the image
 * first; with `unsafe` the image is only told so.
 */
export function rebase(
  image: Image,
  backing: string | null,
  options: ImgSettings & {
    readonly backingFormat?: Format | undefined;
    readonly backingCache?: CacheMode | undefined;
    readonly unsafe?: boolean | undefined;
  } = {},
): Operation<void> {
  const { unsafe, backingCache } = options;
  const format = options.backingFormat ?? (backing === null ? undefined : (formatByName(backing) ?? 'raw'));
  const args = { image: specOf(image), backing: { name: backing ?? '', format }, unsafe, backingCache };
  return operation('rebase', { ...args, how: howOf(options) }, options);
}

/** Writes what an image holds into the one below it, or into `base`, and empties it unless told to `keep` or `base` is
 *  given. */
export function commit(
  image: Image,
  options: ImgSettings & {
    readonly base?: string | undefined;
    readonly keep?: boolean | undefined;
    /** Bytes a second at most. */
    readonly speed?: Bytes | undefined;
  } = {},
): Operation<void> {
  const { base, keep, speed } = options;
  return operation('commit', { image: specOf(image), how: howOf(options), base, keep, speed }, options);
}

/** How large a copy of an image, or a new disk of `size` bytes, would be as an image of another kind. */
export function measure(
  image: Image | { readonly size: Bytes },
  options: ReadSettings & NewImage = {},
): Operation<Measurement> {
  const size = typeof image !== 'string' && !('driver' in image) && !('name' in image) ? image.size : undefined;
  const { made, secrets } = creationOf(undefined, options);
  const create = size === undefined ? made : { ...made, options: { ...made.options, size } };
  const args = { how: { ...howOf(options), shareWrites: true }, create };
  const own = { ...options, objects: [...(options.objects ?? []), ...secrets] };
  return operation('measure', { ...args, image: size === undefined ? specOf(image as Image) : undefined }, own);
}

/** Copies a part of a disk into an image that is made: `length` bytes from `skip` on, or what there is of them. */
export function dd(
  source: Image,
  target: string,
  options: ReadSettings & NewImage & { readonly skip?: Offset | undefined; readonly length?: Bytes | undefined } = {},
): Operation<void> {
  const { skip = 0, length = Number.MAX_SAFE_INTEGER - skip } = options;
  const { made, secrets } = creationOf(target, options);
  const args = { source: specOf(source), sourceHow: howOf(options), target, create: made, skip, end: skip + length };
  return operation('dd', args, { ...options, objects: [...(options.objects ?? []), ...secrets] });
}

/** Changes the persistent dirty bitmap `name`, one action after the other, as far as the first that fails. */
export function bitmap(
  image: Image,
  name: string,
  actions: readonly BitmapAction[],
  options: ImgSettings & {
    /** Of one that is added: bytes that a bit stands for. */
    readonly granularity?: Bytes | undefined;
    /** The image whose bitmaps are merged. Default: the same. */
    readonly from?: Image | undefined;
  } = {},
): Operation<void> {
  const { granularity, from } = options;
  const source = from === undefined ? undefined : specOf(from);
  const args = { image: specOf(image), how: howOf(options), name, actions, granularity, from: source };
  return operation('bitmap', args, options);
}

/** Changes options of an image that is there. ENOTSUP for a format that has none. */
export function amend(image: Image, changes: AmendOptions, options: ImgSettings = {}): Operation<void> {
  const args = { image: specOf(image), how: howOf(options), changes: driverOptions({ ...changes }) };
  return operation('amend', args, options);
}

export interface BenchSettings extends ImgSettings {
  readonly write?: boolean | undefined;
  /** Requests in all; default 75,000. */
  readonly count?: number | undefined;
  /** Requests at a time; default 64. */
  readonly depth?: number | undefined;
  /** Of each; default 4096. */
  readonly bytes?: Bytes | undefined;
  readonly offset?: Offset | undefined;
  /** From one to the next; default `bytes`. */
  readonly step?: Bytes | undefined;
  /** What is written, 0 to 255. */
  readonly pattern?: number | undefined;
  /** A flush after so many writes; default: none. */
  readonly flushInterval?: number | undefined;
}

/** Reads or writes in even steps; answers the milliseconds from the first request to the end of the last. */
export function bench(image: Image, options: BenchSettings = {}): Operation<number> {
  const { write, count = 75_000, depth = 64, bytes = 4096, offset = 0, pattern, flushInterval = 0 } = options;
  const step = options.step ?? bytes;
  const load = { write, count, depth, bytes, offset, step, pattern, flushInterval };
  return operation('bench', { image: specOf(image), how: howOf(options), ...load }, options);
}

function specOf(image: Image, format?: Format | 'probe'): ImageSpec {
  if (typeof image === 'string') return withFormat(image, format ?? formatByName(image) ?? 'raw');
  if ('driver' in image) return { name: `json:${JSON.stringify(image)}` };
  return withFormat(image.name, image.format ?? format ?? formatByName(image.name) ?? 'raw');
}

function withFormat(name: string, format: Format | 'probe'): ImageSpec {
  return format === 'probe' ? { name } : { name, format };
}

function howOf({ cache, forceShare, snapshot: which }: ReadSettings) {
  return { cache, forceShare, snapshot: which };
}

function listOf(source: Image | readonly Image[]): readonly Image[] {
  return Array.isArray(source) ? (source as readonly Image[]) : [source as Image];
}

/** Id of the secret that a key given as it is becomes. */
const KEY = 'blockplane-key';

/** A new image, and the secret that its options name. */
function creationOf(
  target: Image | undefined,
  { format, create }: NewImage,
): { readonly made: Creation; readonly secrets: readonly ObjectOptions[] } {
  const own = typeof target === 'object' && !('driver' in target) ? target.format : undefined;
  const { 'encrypt.key': key, ...options } = driverOptions({ ...create });
  const made = { format: format ?? own ?? (typeof target === 'string' ? formatToMake(target) : 'raw'), options };
  if (typeof key !== 'string') return { made, secrets: [] };
  return {
    made: { ...made, options: { ...options, 'encrypt.key-secret': KEY } },
    secrets: [{ 'qom-type': 'secret', id: KEY, data: key }],
  };
}

function refuse(wrong: unknown, why: string): void {
  if (wrong) throw new BlockError(Errno.EINVAL, `Could not use the options: ${why}`);
}
