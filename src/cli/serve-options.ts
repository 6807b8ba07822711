/** The options of `serve`, checked and in the library's terms. */
import { basename, extname } from 'node:path';
import { NBD_RANGES } from '../lib/nbd.ts';
import {
  CACHE_MODES,
  type CacheMode,
  type DetectZeroes,
  type Discard,
  FORMATS,
  type Format,
  type HttpSettings,
  imageName,
  type Qcow2Settings,
} from '../lib/options.ts';
import type { ReferenceOptions } from '../lib/reference-policy.ts';
import type { TlsServerOptions } from '../lib/tls-options.ts';
import { httpOption, oneOf, readKey, referenceOptions } from './image-args.ts';
import type { ProgressMode } from './progress.ts';
import { parseCount, parseSize, sizeText, UsageError } from './report.ts';
import { type RawTlsOptions, type TlsByObject, tlsOptions } from './tls-args.ts';

/** As commander delivers them. */
export interface RawServeOptions extends RawTlsOptions {
  readonly format?: string;
  readonly imageOpts?: boolean;
  readonly socket?: string;
  readonly listen?: string;
  readonly vhostUser: readonly string[];
  readonly queues?: string;
  readonly exportName: readonly string[];
  readonly description: readonly string[];
  readonly bitmap: readonly string[];
  readonly readOnly?: boolean;
  readonly forceShare?: boolean;
  readonly aio?: string;
  readonly cache?: string;
  readonly discard?: string;
  readonly detectZeroes?: string;
  readonly iothread: readonly string[];
  readonly iothreads?: string;
  readonly clientThreads?: string;
  readonly pollMaxNs?: string;
  readonly maxConnections?: string;
  readonly handshakeSeconds?: string;
  readonly memory?: string;
  readonly progress?: string;
  readonly size?: string;
  readonly references?: string;
  readonly allowDirectory: readonly string[];
  readonly snapshot?: string;
  readonly keyFile?: string;
  readonly object: readonly string[];
  readonly overlay: readonly string[];
  readonly prefetch?: boolean;
  readonly httpOpts?: readonly string[];
  readonly download?: boolean;
}

export type ListenAt =
  | { readonly kind: 'private' }
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'inet'; readonly host: string; readonly port: number };

export interface ServeOptions {
  readonly images: readonly ServeImage[];
  /** Names of the threads; each image names one of them. */
  readonly threads: readonly string[];
  /** IOThreads that serve the clients of an IOThread's images, itself included. */
  readonly clientThreads: number;
  readonly listen: ListenAt;
  /** The most queues of a guest. */
  readonly queues: number | undefined;
  readonly format: Format | undefined;
  /** The images are trees of options as text. */
  readonly imageOpts: boolean;
  /** Dirty bitmaps that every image has. */
  readonly bitmaps: readonly string[];
  readonly readOnly: boolean;
  readonly forceShare: boolean;
  readonly aio: 'ring' | 'pool' | undefined;
  readonly cache: CacheMode | undefined;
  readonly discard: Discard | undefined;
  readonly detectZeroes: DetectZeroes | undefined;
  readonly pollMaxNs: number | undefined;
  readonly maxConnections: number | undefined;
  readonly handshakeSeconds: number | undefined;
  readonly byteBudget: number | undefined;
  readonly progress: ProgressMode;
  /** Of the temporary image, when there is no other. */
  readonly size: number;
  readonly references: ReferenceOptions;
  readonly qcow2: Qcow2Settings;
  /** Overlays are made independent of their images in the background. */
  readonly prefetch: boolean;
  readonly http: HttpSettings | undefined;
  /** Descriptions of objects, in order. */
  readonly objects: readonly string[];
  readonly tls: TlsServerOptions | TlsByObject | undefined;
}

export interface ServeImage {
  /** undefined: the temporary image. */
  readonly path: string | undefined;
  /** What is served is this image over it. */
  readonly overlay: string | undefined;
  readonly exportName: string;
  readonly description: string;
  readonly thread: string;
  /** Where virtual machines come for it; then it is no NBD export. */
  readonly vhostUser: string | undefined;
}

const MAX_IOTHREADS = 64;
const MAX_GUEST_QUEUES = 256;

/** HOST:PORT, [IPV6]:PORT, :PORT or HOST. */
export function parseListen(text: string): ListenAt {
  const match = /^(?:\[([^\]]+)\]|([^:]*))(?::(\d+))?$/.exec(text);
  if (!match) throw new UsageError(`--listen: '${text}' is not HOST:PORT or [IPV6]:PORT`);
  const host = match[1] ?? match[2] ?? '';
  const port = match[3] === undefined ? 10809 : Number(match[3]);
  if (port > 65535) throw new UsageError(`--listen: port ${port} is not in 0..65535`);
  return { kind: 'inet', host: host === '' ? '127.0.0.1' : host, port };
}

function listenAt(raw: RawServeOptions): ListenAt {
  if (raw.socket !== undefined && raw.listen !== undefined) {
    throw new UsageError('--socket and --listen: give one of them');
  }
  if (raw.socket !== undefined) return { kind: 'unix', path: raw.socket };
  return raw.listen === undefined ? { kind: 'private' } : parseListen(raw.listen);
}

function clientThreads(raw: RawServeOptions): number {
  const count = raw.clientThreads === undefined ? 1 : parseCount(raw.clientThreads, '--client-threads', 1);
  if (count > MAX_IOTHREADS) throw new UsageError(`--client-threads: ${count} is more than ${MAX_IOTHREADS}`);
  return count;
}

function checkVhostUser(raw: RawServeOptions, images: number): void {
  const given = raw.vhostUser.length;
  if (raw.queues !== undefined && given === 0) throw new UsageError('--queues: only with --vhost-user');
  if (given === 0) return;
  if (given !== images) {
    throw new UsageError(`--vhost-user: given ${given} times for ${images} image${images === 1 ? '' : 's'}`);
  }
  if (new Set(raw.vhostUser).size < given) throw new UsageError('--vhost-user: two images have the same socket');
  if (raw.socket !== undefined || raw.listen !== undefined || raw.bitmap.length > 0) {
    throw new UsageError('--vhost-user: not with --socket, --listen or --bitmap, which are for NBD');
  }
}

function threadNames(raw: RawServeOptions, images: number): string[] {
  if (raw.iothreads !== undefined) {
    if (raw.iothread.length > 0) throw new UsageError('--iothread and --iothreads: give one of them');
    const count = parseCount(raw.iothreads, '--iothreads', 1);
    if (count > MAX_IOTHREADS) throw new UsageError(`--iothreads: ${count} is more than ${MAX_IOTHREADS}`);
    return Array.from({ length: Math.min(count, images) }, (_, i) => `io${i}`);
  }
  if (raw.iothread.length === 0) return ['io0'];
  if (raw.iothread.length > images) {
    throw new UsageError(
      `--iothread: given ${raw.iothread.length} times for ${images} image${images === 1 ? '' : 's'}`,
    );
  }
  return [...raw.iothread];
}

/** One image is the export '' unless it is named; several go by their files' names, made unique. */
function exportNames(paths: readonly (string | undefined)[], given: readonly string[]): string[] {
  const names = new Set(given);
  if (names.size < given.length) throw new UsageError('--export-name: two exports have the same name');
  if (given.length > paths.length) {
    throw new UsageError(
      `--export-name: ${given.length} names for ${paths.length} image${paths.length === 1 ? '' : 's'}`,
    );
  }
  return paths.map((path, i) => {
    const wanted = given[i];
    if (wanted !== undefined) return wanted;
    if (paths.length === 1) return '';
    // Without the query of a URL.
    const file = imageName(path ?? 'disk').replace(/\?…$/, '');
    const base = basename(file, extname(file));
    let name = base;
    for (let n = 2; names.has(name); n++) name = `${base}-${n}`;
    names.add(name);
    return name;
  });
}

function progressMode(text: string | undefined): ProgressMode {
  const mode = oneOf(text, ['auto', 'none', 'line', 'json'], '--progress') ?? 'auto';
  if (mode !== 'auto') return mode;
  return process.stderr.isTTY ? 'line' : 'none';
}

interface Range {
  readonly least: number;
  readonly most: number;
}

function memorySize(text: string): number {
  const bytes = parseSize(text, '--memory');
  const { least, most } = NBD_RANGES.byteBudget;
  if (bytes >= least && bytes <= most) return bytes;
  throw new UsageError(`--memory: '${text}' is not from ${sizeText(least)} to ${sizeText(most)}`);
}

function assertOverlays({ overlay, prefetch, forceShare }: RawServeOptions, images: number): void {
  if (overlay.length > 0 && overlay.length !== images) {
    throw new UsageError(`--overlay: given ${overlay.length} times for ${images} image${images === 1 ? '' : 's'}`);
  }
  if (prefetch && overlay.length === 0) throw new UsageError('--prefetch: only with --overlay');
  if (forceShare && overlay.length > 0) throw new UsageError('--force-share: not with --overlay, which is written to');
}

/** Throws {@link UsageError}. */
export function serveOptions(paths: readonly string[], raw: RawServeOptions): ServeOptions {
  const targets: readonly (string | undefined)[] = paths.length > 0 ? paths : [undefined];
  const threads = threadNames(raw, targets.length);
  const names = exportNames(targets, raw.exportName);
  checkVhostUser(raw, targets.length);
  if (raw.forceShare && !raw.readOnly) throw new UsageError('--force-share: only with --read-only');
  if (raw.size !== undefined && paths.length > 0) throw new UsageError('--size: only without an IMAGE');
  const own = raw.snapshot ?? raw.keyFile ?? raw.format;
  if (own !== undefined && paths.length === 0) {
    throw new UsageError('--format, --snapshot and --key-file: only with an IMAGE');
  }
  if (raw.imageOpts && own !== undefined) {
    throw new UsageError('--image-opts: not with --format, --snapshot or --key-file, which it says itself');
  }
  assertOverlays(raw, paths.length);
  if (raw.description.length > targets.length) throw new UsageError('--description: given more often than IMAGE');
  const number = (text: string | undefined, what: string, range?: Range): number | undefined =>
    text === undefined ? undefined : parseCount(text, what, range?.least, range?.most);
  return {
    images: targets.map((path, i) => ({
      path,
      overlay: raw.overlay[i],
      exportName: names[i]!,
      description: raw.description[i] ?? '',
      thread: threads[i % threads.length]!,
      vhostUser: raw.vhostUser[i],
    })),
    threads: [...new Set(threads)],
    clientThreads: clientThreads(raw),
    listen: listenAt(raw),
    queues: raw.queues === undefined ? undefined : parseCount(raw.queues, '--queues', 1, MAX_GUEST_QUEUES),
    format: oneOf(raw.format, FORMATS, '--format'),
    bitmaps: raw.bitmap,
    imageOpts: raw.imageOpts ?? false,
    // A snapshot is what it was; writes over it are in the overlay.
    readOnly: raw.readOnly ?? (raw.snapshot !== undefined && raw.overlay.length === 0),
    forceShare: raw.forceShare ?? false,
    aio: oneOf(raw.aio, ['ring', 'pool'] as const, '--aio'),
    cache: oneOf(raw.cache, CACHE_MODES, '--cache'),
    discard: oneOf(raw.discard, ['ignore', 'unmap'] as const, '--discard'),
    detectZeroes: oneOf(raw.detectZeroes, ['off', 'on', 'unmap'] as const, '--detect-zeroes'),
    pollMaxNs: number(raw.pollMaxNs, '--poll-max-ns'),
    maxConnections: number(raw.maxConnections, '--max-connections', NBD_RANGES.maxConnections),
    handshakeSeconds: number(raw.handshakeSeconds, '--handshake-seconds', NBD_RANGES.handshakeSeconds),
    byteBudget: raw.memory === undefined ? undefined : memorySize(raw.memory),
    progress: progressMode(raw.progress),
    size: raw.size === undefined ? 2 ** 30 : parseSize(raw.size, '--size'),
    references: referenceOptions(raw),
    prefetch: raw.prefetch ?? false,
    qcow2: { snapshot: raw.snapshot, 'encrypt.key': readKey(raw.keyFile) },
    http: httpOption([...(raw.httpOpts ?? []), ...(raw.download ? ['download=on'] : [])]),
    objects: raw.object,
    tls: tlsOptions(raw),
  };
}
