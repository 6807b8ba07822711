/** What can be opened, by the names that QAPI gives it, and how a file name becomes that. */
import { BlockError, Errno } from '../base/errors.ts';
import { MAX_DEPTH } from '../block/depth.ts';
import type { BlkdebugOptions as BlkdebugSettings } from '../drivers/blkdebug/driver.ts';
import { isRemoteUrl, shownUrl, urlPath } from '../drivers/http/location.ts';
import type { HttpOptions as HttpNodeSettings } from '../drivers/http/settings.ts';
import type { PreallocateSettings } from '../drivers/preallocate/driver.ts';
import { DEFAULT_PORT } from '../proto/nbd/constants.ts';
import type { ObjectStore } from './objects/store.ts';
import { type TlsClientOptions, type TlsNodeOptions, tlsNode } from './tls-options.ts';
import { isNbdUri, type NbdServerAddress, nbdUri, parseNbdUri } from './uri.ts';

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
  /** The format is a guess: a write to the beginning that would make it look like another format is EPERM. */
  readonly guessed?: boolean;
}

/** Options of a qcow2 node of its own, by the names of QAPI where it has them. */
export interface Qcow2Settings {
  /** Id or name of the internal snapshot to show; read-only. */
  readonly snapshot?: string | undefined;
  /** Passphrase of an encrypted image. */
  readonly 'encrypt.key'?: string | undefined;
  /** Instead: the id of a secret with it. */
  readonly 'encrypt.key-secret'?: string | undefined;
  /** What the encryption has to be; default: whatever it is. */
  readonly 'encrypt.format'?: 'luks' | 'aes' | undefined;
  readonly 'lazy-refcounts'?: boolean | undefined;
  /** Bytes of both metadata caches together, of the L2 tables' and of the refcounts'. */
  readonly 'cache-size'?: number | undefined;
  readonly 'l2-cache-size'?: number | undefined;
  readonly 'refcount-cache-size'?: number | undefined;
  /** Bytes: a power of two, 512 to the cluster size. */
  readonly 'l2-cache-entry-size'?: number | undefined;
  /** Seconds after which unused cache memory is given back; 0 for never. */
  readonly 'cache-clean-interval'?: number | undefined;
  /** Seconds between checkpoints of the dirty bitmaps, which then outlive a crash (docs/QCOW2.md). Default 0: none. */
  readonly 'bitmap-checkpoint'?: number | undefined;
  readonly 'pass-discard-request'?: boolean | undefined;
  readonly 'pass-discard-snapshot'?: boolean | undefined;
  readonly 'pass-discard-other'?: boolean | undefined;
  readonly 'discard-no-unref'?: boolean | undefined;
  readonly 'overlap-check'?: 'none' | 'constant' | 'cached' | 'all' | undefined;
}

/**
 * A qcow2 image in `file`. Where the image names a backing file or an external data file and the tree says nothing of
 * it, the name is followed as far as `references` allows.
 */
export interface Qcow2Options extends NodeOptions, Qcow2Settings {
  readonly driver: 'qcow2';
  readonly file: BlockdevOptions | string;
  /** null: without it, whatever the image says. */
  readonly backing?: BlockdevOptions | string | null;
  readonly 'data-file'?: BlockdevOptions | string;
}

/** How a web server is used: all but the URL. Values that are secret are in no message. */
export interface HttpSettings extends Omit<HttpNodeSettings, 'url'> {
  /** Instead of `password`: the id of a secret with it. So with the others. */
  readonly 'password-secret'?: string;
  readonly 'cookie-secret'?: string;
  readonly 'proxy-password-secret'?: string;
}

/** A file on a web server, read-only. */
export interface HttpOptions extends NodeOptions, HttpSettings {
  readonly url: string;
  readonly driver: 'http' | 'https';
}

/** A device without memory: takes writes, reads back nothing or zeroes. */
export interface NullOptions extends NodeOptions {
  readonly driver: 'null-co' | 'null-aio';
  /** Bytes; default 1 GiB. */
  readonly size?: number;
  readonly 'latency-ns'?: number;
  readonly 'read-zeroes'?: boolean;
}

/** What goes through it, waits as the throttle group of that id says (docs/THROTTLE.md). */
export interface ThrottleOptions extends NodeOptions {
  readonly driver: 'throttle';
  readonly 'throttle-group': string;
  readonly file: BlockdevOptions | string;
}

/** Under it requests fail, or stop, when drivers come to points of their work (docs/FILTERS.md). For tests. */
export interface BlkdebugOptions extends NodeOptions, BlkdebugSettings {
  readonly driver: 'blkdebug';
  readonly image: BlockdevOptions | string;
}

/** Everything is done to both, and what reads give is compared. For tests. */
export interface BlkverifyOptions extends NodeOptions {
  readonly driver: 'blkverify';
  /** The image that is to be tried. */
  readonly test: BlockdevOptions | string;
  /** One that is known to be right. */
  readonly raw: BlockdevOptions | string;
}

/** What is written is stored compressed, in whole clusters. */
export interface CompressOptions extends NodeOptions {
  readonly driver: 'compress';
  readonly file: BlockdevOptions | string;
}

/** Its file grows in large steps, allocated ahead of what is written (docs/FILTERS.md). */
export interface PreallocateOptions extends NodeOptions, PreallocateSettings {
  readonly driver: 'preallocate';
  readonly file: BlockdevOptions | string;
}

/** An export of an NBD server. */
export interface NbdOptions extends NodeOptions, TlsNodeOptions {
  readonly driver: 'nbd';
  readonly server: NbdServerAddress;
  /** Name of the export; default ''. */
  readonly export?: string;
  /** Seconds that requests wait for a server that was lost, and then are sent again; default 0: they fail. */
  readonly 'reconnect-delay'?: number;
  /** Seconds that opening waits for a server that is not there yet; default 0. */
  readonly 'open-timeout'?: number;
  /** At most so many connections, 1 to 16, where the server allows several; default 4. */
  readonly connections?: number;
  /** false: a server keeps what it has acknowledged even when it is killed. Default true: flush fails where that may be
   *  lost. */
  readonly 'restart-loses-cache'?: boolean;
  /** `qemu:dirty-bitmap:NAME`: block status tells what is dirty in this bitmap of the server's, by having no data
   *  there. For asking, and for nothing else. */
  readonly 'x-dirty-bitmap'?: string;
}

/** A disk of any vhost-user-blk back-end. It needs io_uring. */
export interface VirtioBlkVhostUserOptions extends NodeOptions {
  readonly driver: 'virtio-blk-vhost-user';
  /** Of the back-end's unix socket. */
  readonly path: string;
  /** At most so many, 1 to 64, where the back-end has several; default 1. */
  readonly 'num-queues'?: number;
  /** Packed rings, where the back-end has them. */
  readonly packed?: boolean;
  /** Seconds that requests wait for a back-end that was lost, and then are made again; default 0: they fail. */
  readonly 'reconnect-delay'?: number;
  /** Seconds after which a back-end that does not answer a request counts as lost; default 120, 0 for never. */
  readonly 'request-timeout'?: number;
}

/** What a driver of your own takes. */
export interface CustomOptions extends NodeOptions {
  readonly driver: string;
  readonly [option: string]: unknown;
}

/** A tree of nodes. A string in the place of a child names a node that is open in the same IOThread. */
export type BlockdevOptions =
  | FileOptions
  | RawOptions
  | Qcow2Options
  | NbdOptions
  | NullOptions
  | HttpOptions
  | VirtioBlkVhostUserOptions
  | ThrottleOptions
  | BlkdebugOptions
  | BlkverifyOptions
  | CompressOptions
  | PreallocateOptions;

export type Format = 'raw' | 'qcow2';
export type Discard = 'ignore' | 'unmap';
export type DetectZeroes = 'off' | 'on' | 'unmap';
/**
 * - `writeback`: the page cache, flushed when asked (default);
 * - `none`: no page cache (O_DIRECT), flushed when asked;
 * - `writethrough` / `directsync`: as these two, every write on stable storage before it ends;
 * - `unsafe`: flushes are ignored.
 */
export type CacheMode = 'writeback' | 'none' | 'writethrough' | 'directsync' | 'unsafe';

export const FORMATS: readonly Format[] = ['raw', 'qcow2'];
export const CACHE_MODES: readonly CacheMode[] = ['writeback', 'none', 'writethrough', 'directsync', 'unsafe'];

/** How a target is opened when it is given by file name. */
export interface TargetOptions {
  /** Default: qcow2 for a name that ends with .qcow2, raw for others; see open(). */
  readonly format?: Format | undefined;
  /** Options of the qcow2 node. The format is qcow2 then, unless it is given. */
  readonly qcow2?: Qcow2Settings | undefined;
  /** For a target that is a URL; of no meaning to others. */
  readonly http?: HttpSettings | undefined;
  /** For a target that is an nbds URI, which then says nothing of it itself. */
  readonly tls?: TlsClientOptions | undefined;
  readonly readOnly?: boolean | undefined;
  readonly forceShare?: boolean | undefined;
  readonly cache?: CacheMode | undefined;
  readonly discard?: Discard | undefined;
  readonly detectZeroes?: DetectZeroes | undefined;
  /** Where the objects are that options name by their ids. */
  readonly objects?: ObjectStore | undefined;
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

/** The tree for `target`: a file name or a URL becomes a node of the format over a node for it; a raw image on an NBD
 *  server is that node itself. */
export function blockdevOf(target: string | BlockdevOptions, options: TargetOptions = {}): BlockdevOptions {
  const cache = oneOf(options.cache, CACHE_MODES, 'cache mode');
  const discard = oneOf<Discard>(options.discard, ['ignore', 'unmap'], 'discard mode');
  const detectZeroes = oneOf<DetectZeroes>(options.detectZeroes, ['off', 'on', 'unmap'], 'detect-zeroes mode');
  const driver = formatOf(target, options) ?? 'raw';
  // Nodes below inherit read-only, force-share and cache.
  const top: NodeOptions = {
    ...(options.readOnly ? { 'read-only': true } : {}),
    ...(options.forceShare ? { 'force-share': true } : {}),
    ...(discard ? { discard } : {}),
    ...(cache ? { cache: { direct: cache === 'none' || cache === 'directsync', 'no-flush': cache === 'unsafe' } } : {}),
    ...(detectZeroes ? { 'detect-zeroes': detectZeroes } : {}),
  };
  if (options.tls !== undefined && (typeof target !== 'string' || !isNbdUri(target))) {
    throw new BlockError(Errno.EINVAL, "tls: only for a target that is an nbds URI; a tree has 'tls-creds'");
  }
  if (typeof target !== 'string') return { ...top, ...target };
  if (target === '') throw new BlockError(Errno.EINVAL, "Could not open '': the file name is empty");
  if (target.includes('\0')) {
    throw new BlockError(
      Errno.EINVAL,
      `Could not open '${imageName(target).replaceAll('\0', '\\0')}': the file name has a NUL byte`,
    );
  }
  if (NULL_URL.test(target)) {
    return { ...top, driver: target === 'null-co://' ? 'null-co' : 'null-aio' };
  }
  if (isNbdUri(target)) {
    const remote: NbdOptions = { driver: 'nbd', ...parseNbdUri(target), ...tlsOf(target, options) };
    if (driver === 'raw') return { discard: 'unmap', ...top, ...remote };
    return { discard: 'unmap', ...top, ...options.qcow2, driver, file: remote };
  }
  if (isRemoteUrl(target)) {
    const protocol = target.slice(0, target.indexOf(':')).toLowerCase() as HttpOptions['driver'];
    const file = { driver: protocol, url: target, ...options.http };
    return { ...top, ...options.qcow2, 'read-only': true, driver, file };
  }
  // Who trims a plain file wants the space back; a tree says for itself (QAPI's default is ignore).
  return { discard: 'unmap', ...top, ...options.qcow2, driver, file: { driver: 'file', filename: target } };
}

/** EINVAL where TLS would be asked for and not be had, or is said twice. */
function tlsOf(uri: string, { tls }: TargetOptions): TlsNodeOptions {
  if (tls === undefined) return {};
  if (!/^nbds/i.test(uri)) throw new BlockError(Errno.EINVAL, `Could not open '${uri}': tls is for nbds URIs`);
  if (/[?&]tls-/i.test(uri)) throw new BlockError(Errno.EINVAL, `Could not open '${uri}': tls is given twice`);
  return tlsNode(tls);
}

/** What the format is when something says so: the option, options that only one format has, or the name. */
function formatOf(target: string | BlockdevOptions, options: TargetOptions): Format | undefined {
  const format = oneOf(options.format, FORMATS, 'format');
  const settings = Object.values(options.qcow2 ?? {}).some((value) => value !== undefined);
  if (settings && (typeof target !== 'string' || (format ?? 'qcow2') !== 'qcow2')) {
    throw new BlockError(Errno.EINVAL, 'Could not use the options of qcow2: the image is not given as a qcow2 file');
  }
  if (format !== undefined || settings) return format ?? 'qcow2';
  return typeof target === 'string' && !isNbdUri(target) ? formatByName(target) : undefined;
}

/** The format that a file's name says: it was chosen on this side, where a guest can write any content. */
export function formatByName(path: string): Format | undefined {
  return /\.qcow2$/i.test(isRemoteUrl(path) ? urlPath(path) : path) ? 'qcow2' : undefined;
}

/** What other programs go by such a name for. */
const OTHER_FORMATS = /\.(vmdk|vdi|vhdx?|qed|qcow|hdd|dmg)$/i;

/** The format of a file that is to be made, of which nobody said it. EINVAL where its name is that of a format that
 *  cannot be made: who asks for disk.vmdk does not want raw bytes under it. */
export function formatToMake(path: string): Format {
  const other = OTHER_FORMATS.exec(path)?.[1]?.toLowerCase();
  if (other === undefined) return formatByName(path) ?? 'raw';
  const why = `${other} images cannot be made; give the format raw to have raw bytes under that name`;
  throw new BlockError(Errno.EINVAL, `Could not create '${imageName(path)}': ${why}`);
}

/** What a target goes by in messages, with no secret in it. */
export function imageName(target: string): string {
  return isRemoteUrl(target) ? shownUrl(target) : target;
}

/** The name a tree goes by in messages: its file's, its export's URI, or its driver's. */
export function nameOf(options: BlockdevOptions): string {
  let node = options;
  // A tree that goes round in a circle has no name; the graph refuses it.
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    const {
      filename,
      path,
      url,
      image,
      file = image,
    } = node as {
      readonly filename?: unknown;
      readonly path?: unknown;
      readonly url?: unknown;
      readonly image?: string | BlockdevOptions;
      readonly file?: string | BlockdevOptions;
    };
    if (typeof filename === 'string') return filename;
    if (node.driver === 'virtio-blk-vhost-user') return String(path);
    if (node.driver === 'blkverify' && typeof node.raw === 'object' && typeof node.test === 'object') {
      return `blkverify:${nameOf(node.raw)}:${nameOf(node.test)}`;
    }
    if (node.driver === 'blkdebug' && typeof image === 'object')
      return `blkdebug:${node.config ?? ''}:${nameOf(image)}`;
    if (node.driver === 'nbd') return locationName(node);
    if (typeof url === 'string') return shownUrl(url);
    if (typeof file === 'string') return file;
    if (typeof file !== 'object' || file === null) break;
    node = file;
  }
  return `${node.driver}://`;
}

/** What cannot be is refused when the node opens. */
function locationName({ server, export: name = '', 'tls-creds': tls }: NbdOptions): string {
  const secure = tls !== undefined;
  // A lone surrogate has no place in a URI.
  const text = String(name).replace(/[\ud800-\udfff]/gu, '\ufffd');
  const { type, path, host, port } = (server ?? {}) as Readonly<Record<string, unknown>>;
  if (type === 'unix') return nbdUri({ kind: 'unix', path: String(path) }, text, secure);
  return nbdUri({ kind: 'inet', host: String(host), port: Number(port ?? DEFAULT_PORT) }, text, secure);
}

/** True when the format was left to us and nothing says it but the content. */
export function isProbed(target: string | BlockdevOptions, options: TargetOptions = {}): boolean {
  if (typeof target !== 'string' || NULL_URL.test(target) || isNbdUri(target)) return false;
  return formatOf(target, options) === undefined;
}
