/** What can be opened, by the names that QAPI gives it, and how a file name becomes that. */
import { BlockError, Errno } from '../base/errors.ts';

/** Options of every node. */
export interface NodeOptions {
  /** The node's name; unique in its IOThread. Default: #block followed by a number. */
  readonly 'node-name'?: string;
  readonly 'read-only'?: boolean;
  /** Open read-only when it cannot be opened for writing. */
  readonly 'auto-read-only'?: boolean;
  /** Take no lock and respect none; read-only nodes only. */
  readonly 'force-share'?: boolean;
  readonly discard?: Discard;
  readonly 'detect-zeroes'?: DetectZeroes;
  readonly cache?: { readonly direct?: boolean; readonly 'no-flush'?: boolean };
}

/** A file, or a host block device. */
export interface FileOptions extends NodeOptions {
  readonly driver: 'file' | 'host_device';
  readonly filename: string;
  /** OFD locks that qemu understands: 'auto' (default) uses them where the system has them. */
  readonly locking?: 'auto' | 'on' | 'off';
}

/** A flat image: the bytes of `file`, or `size` of them from `offset`. */
export interface RawOptions extends NodeOptions {
  readonly driver: 'raw';
  readonly file: BlockdevOptions | string;
  /** Bytes. */
  readonly offset?: number;
  /** Bytes. */
  readonly size?: number;
}

/** A device without memory: takes writes, reads back nothing or zeroes. */
export interface NullOptions extends NodeOptions {
  readonly driver: 'null-co' | 'null-aio';
  /** Bytes; default 1 GiB. */
  readonly size?: number;
  readonly 'latency-ns'?: number;
  readonly 'read-zeroes'?: boolean;
}

/** What a driver of your own takes. */
export interface CustomOptions extends NodeOptions {
  readonly driver: string;
  readonly [option: string]: unknown;
}

/** A tree of nodes. A string in the place of a child names a node that is open in the same IOThread. */
export type BlockdevOptions = FileOptions | RawOptions | NullOptions;

export type Format = 'raw';
export type Discard = 'ignore' | 'unmap';
export type DetectZeroes = 'off' | 'on' | 'unmap';
/**
 * - `writeback`: the page cache, flushed when asked (default);
 * - `none`: no page cache (O_DIRECT), flushed when asked;
 * - `writethrough` / `directsync`: as these two, every write on stable storage before it ends;
 * - `unsafe`: flushes are ignored.
 */
export type CacheMode = 'writeback' | 'none' | 'writethrough' | 'directsync' | 'unsafe';

export const FORMATS: readonly Format[] = ['raw'];
export const CACHE_MODES: readonly CacheMode[] = ['writeback', 'none', 'writethrough', 'directsync', 'unsafe'];

/** How a target is opened when it is given by file name. */
export interface TargetOptions {
  readonly format?: Format | undefined;
  readonly readOnly?: boolean | undefined;
  readonly forceShare?: boolean | undefined;
  readonly cache?: CacheMode | undefined;
  readonly discard?: Discard | undefined;
  readonly detectZeroes?: DetectZeroes | undefined;
}

export function isWritethrough(cache: CacheMode | undefined): boolean {
  return cache === 'writethrough' || cache === 'directsync';
}

function oneOf<T extends string>(value: T | undefined, allowed: readonly T[], what: string): T | undefined {
  if (value === undefined || allowed.includes(value)) return value;
  throw new BlockError(Errno.EINVAL, `Unknown ${what} '${value}': use one of ${allowed.join(', ')}`);
}

const NULL_URL = /^null-(co|aio):\/\/$/;

/**
 * A node of a driver that was given to IOThread.start(): to be opened, or a child of another node. The drivers that
 * come along have types of their own, which this goes without.
 */
export function customNode(options: CustomOptions): BlockdevOptions {
  return options as unknown as BlockdevOptions;
}

/** The tree for `target`: a file name (or null-co://) becomes a raw node over a file node. */
export function blockdevOf(target: string | BlockdevOptions, options: TargetOptions = {}): BlockdevOptions {
  const cache = oneOf(options.cache, CACHE_MODES, 'cache mode');
  const discard = oneOf<Discard>(options.discard, ['ignore', 'unmap'], 'discard mode');
  const detectZeroes = oneOf<DetectZeroes>(options.detectZeroes, ['off', 'on', 'unmap'], 'detect-zeroes mode');
  const driver = oneOf(options.format, FORMATS, 'format') ?? 'raw';
  // Nodes below inherit read-only, force-share and cache.
  const top: NodeOptions = {
    ...(options.readOnly ? { 'read-only': true } : {}),
    ...(options.forceShare ? { 'force-share': true } : {}),
    ...(discard ? { discard } : {}),
    ...(cache ? { cache: { direct: cache === 'none' || cache === 'directsync', 'no-flush': cache === 'unsafe' } } : {}),
    ...(detectZeroes ? { 'detect-zeroes': detectZeroes } : {}),
  };
  if (typeof target !== 'string') return { ...top, ...target };
  if (target === '') throw new BlockError(Errno.EINVAL, "Could not open '': the file name is empty");
  if (target.includes('\0')) {
    throw new BlockError(
      Errno.EINVAL,
      `Could not open '${target.replaceAll('\0', '\\0')}': the file name has a NUL byte`,
    );
  }
  if (NULL_URL.test(target)) {
    return { ...top, driver: target === 'null-co://' ? 'null-co' : 'null-aio' };
  }
  // Who trims a plain file wants the space back; a tree says for itself (QAPI's default is ignore).
  return { discard: 'unmap', ...top, driver, file: { driver: 'file', filename: target } };
}

/** The name a tree goes by in messages: its file's, or its driver's. */
export function nameOf(options: BlockdevOptions): string {
  const { filename, file } = options as { readonly filename?: unknown; readonly file?: string | BlockdevOptions };
  if (typeof filename === 'string') return filename;
  if (typeof file === 'string') return file;
  return typeof file === 'object' && file !== null ? nameOf(file) : `${options.driver}://`;
}

/** True when `format` was left to us and nothing in `target` says it. */
export function isProbed(target: string | BlockdevOptions, format: Format | undefined): boolean {
  return typeof target === 'string' && format === undefined && !NULL_URL.test(target);
}
