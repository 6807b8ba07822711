/** Disks as NBD exports. */
import { EventEmitter } from 'node:events';
import type { SocketAddress } from '../aio/backend.ts';
import { onAbort } from '../aio/on-abort.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, GiB, MiB } from '../base/units.ts';
import type { BitmapReference } from '../exports/nbd/bitmaps.ts';
import type { Abortable } from './abort.ts';
import type { Disk } from './disk.ts';
import type { IOThread } from './iothread.ts';
import { type ListenTarget, listenOf } from './listen.ts';

import type { ExportMessage, NbdStats } from './messages.ts';
import { type MemberEvents, NbdMembers, type Shown } from './nbd-members.ts';
import { PrivateDirectory } from './private-directory.ts';
import { type TlsServerOptions, tlsMessage } from './tls-options.ts';
import { nbdUri } from './uri.ts';

export interface ExportOptions {
  /** What clients ask for; default '', the export of clients that name none. At most 4096 bytes of UTF-8. */
  readonly exportName?: string | undefined;
  /** For people, in listings. */
  readonly description?: string | undefined;
  /** Refuse writes; default: as the disk is. */
  readonly readOnly?: boolean | undefined;
  /**
   * Dirty bitmaps that clients may ask for, as the metadata contexts `qemu:dirty-bitmap:NAME`; at most 64. A name is
   * that of the disk's node, or of the first below it that has such a one; else the node is named too.
   * While they are exported they are changed by writes only. A read-only export of a disk that is open for writing
   * takes disabled ones only (EINVAL), and the disk has to be in the service's thread (EINVAL), where they keep it.
   */
  readonly bitmaps?: readonly BitmapReference[] | undefined;
  /** Offer the metadata context `qemu:allocation-depth`; default true. */
  readonly allocationDepth?: boolean | undefined;
  /** Tell clients that they may open several connections; default true. */
  readonly multiConn?: boolean | undefined;
}

/** One of several disks of a service. */
export interface DiskExport extends ExportOptions {
  readonly disk: Disk;
}

export interface ServeNbdOptions extends ListenTarget, ExportOptions, Abortable {
  /**
   * The IOThreads that serve clients: each client in one of them, dealt out as they come. A thread that is not the home
   * of a disk does that disk's I/O through a channel to its home, and where the bytes are in a file that both can use,
   * by itself. ENOTSUP without io_uring. Default: the IOThread of the first disk.
   */
  readonly iothreads?: readonly IOThread[] | undefined;
  /** Clients at a time, at most 10000, in all threads together; the next one waits. Default 100; 0 for no limit. */
  readonly maxConnections?: number | undefined;
  /** How long a client may take to say what it wants, in seconds; default 10, 0 for no limit. */
  readonly handshakeSeconds?: number | undefined;
  /** Payload memory of all connections of a thread, in bytes, from 32 MiB to 1 GiB; default 64 MiB. */
  readonly byteBudget?: Bytes | undefined;
  /** TLS; default: none. The credentials' files are read in the IOThreads. */
  readonly tls?: TlsServerOptions | undefined;
}

/** Milliseconds that requests in flight get to end when a service stops. */
const GRACE_MS = 10_000;

/** What the numbers of {@link ServeNbdOptions} may be. */
export const NBD_RANGES = {
  maxConnections: { least: 0, most: 10_000 },
  handshakeSeconds: { least: 0, most: 86_400 },
  byteBudget: { least: 32 * MiB, most: GiB },
} as const;

/** An export that a service offers. */
interface Offered {
  readonly name: string;
  detach: () => void;
  /** Its end, once it has begun. */
  removing: { readonly mode: 'safe' | 'hard'; readonly ended: Promise<void> } | undefined;
}

/** A running NBD server. 'crash' comes when an IOThread of it died; 'client' and 'disconnect' with each client. */
export class NbdService extends EventEmitter<{ crash: [Error]; client: [string]; disconnect: [string] }> {
  /** Where it listens; ports are filled in. */
  readonly addresses: readonly SocketAddress[];
  /** Those that serve clients. */
  readonly iothreads: readonly IOThread[];
  /** It is used with TLS. */
  readonly secure: boolean;
  readonly #members: NbdMembers;
  readonly #exports = new Map<string, Offered>();
  readonly #directory: PrivateDirectory | undefined;
  /** @internal Runs once when it has ended. */
  onEnd: (() => void) | undefined;
  #stopping: Promise<void> | undefined;
  #ended = false;

  private constructor(
    members: NbdMembers,
    addresses: readonly SocketAddress[],
    directory: PrivateDirectory | undefined,
    secure: boolean,
  ) {
    super();
    this.secure = secure;
    this.#members = members;
    this.iothreads = members.threads;
    this.addresses = addresses;
    this.#directory = directory;
  }

  /** @internal Use serveNbd(). `atHome`: see NbdMembers. */
  static async start(
    threads: readonly IOThread[],
    shown: readonly Shown[],
    message: Parameters<NbdMembers['start']>[2],
    directory: PrivateDirectory | undefined,
    atHome = false,
  ): Promise<NbdService> {
    let service: NbdService | undefined;
    const events: MemberEvents = {
      onClient: (name, peer) => service?.emit(name as 'client' | 'disconnect', peer),
      onCrash: (error) => {
        if (service) service.#crashed(error);
      },
    };
    const members = new NbdMembers(events, atHome);
    try {
      service = new NbdService(
        members,
        await members.start(threads, shown, message),
        directory,
        message.tls !== undefined,
      );
      return service;
    } catch (error) {
      await members.stop(0).catch(() => undefined);
      throw error;
    }
  }

  /** The first of its IOThreads. */
  get iothread(): IOThread {
    return this.iothreads[0]!;
  }

  /** Clients connected now. */
  get clients(): number {
    return this.#members.clients;
  }

  /** Clients whose handshake led to an export, since it began. */
  get handshakes(): number {
    return this.#members.handshakes;
  }

  /** The URI of the export that was added first. */
  get uri(): string {
    return this.uris[0]!;
  }

  /** One URI an export, in the order they were added. */
  get uris(): string[] {
    return [...this.#exports.keys()].map((name) => nbdUri(this.addresses[0]!, name, this.secure));
  }

  /** Totals since it began; after `stop`, the last ones. */
  stats(): Promise<NbdStats> {
    return this.#members.stats();
  }

  /** Offers one more disk. Where it has its home in another IOThread it is reached through a channel, without its
   *  bitmaps (EINVAL). */
  async addExport(entry: DiskExport): Promise<void> {
    const message = exportMessage(entry);
    const { name } = message;
    // The disk stays open until it is known whether its export does.
    const release = entry.disk.hold();
    try {
      await this.#members.add({ disk: entry.disk, message });
      try {
        this.attach(entry.disk, name);
      } catch (error) {
        if (!this.#ended) await this.#members.remove(name, 'hard');
        throw error;
      }
    } finally {
      release();
    }
  }

  /** @internal Closing the disk takes its export away. */
  attach(disk: Disk, name: string): void {
    if (this.#ended) throw new BlockError(Errno.ESHUTDOWN, `Could not export '${disk.name}': the service has stopped`);
    const offered: Offered = { name, detach: () => undefined, removing: undefined };
    offered.detach = disk.dependOn(() => this.#take(offered, 'hard'));
    this.#exports.set(name, offered);
  }

  /**
   * Offers a disk no longer. 'safe': EBUSY while a client uses it. 'hard' (default): its clients are disconnected once
   * their requests in flight have ended. Again, or while the disk closes: the same end.
   */
  async removeExport(name: string, mode: 'safe' | 'hard' = 'hard'): Promise<void> {
    const offered = this.#exports.get(name);
    if (offered) await this.#take(offered, mode);
  }

  async #take(offered: Offered, mode: 'safe' | 'hard'): Promise<void> {
    while (this.#exports.get(offered.name) === offered) {
      const { removing } = offered;
      if (removing && (removing.mode === mode || removing.mode === 'hard')) return removing.ended;
      // One that was not to disturb clients comes first; it may be refused.
      if (removing) {
        await removing.ended.catch(() => undefined);
        continue;
      }
      const ended = this.#remove(offered, mode);
      offered.removing = { mode, ended };
      return ended;
    }
  }

  async #remove(offered: Offered, mode: 'safe' | 'hard'): Promise<void> {
    const { name } = offered;
    try {
      if (this.#stopping) await this.#stopping;
      else await this.#members.remove(name, mode);
    } catch (error) {
      offered.removing = undefined;
      throw error;
    }
    offered.detach();
    if (this.#exports.get(name) === offered) this.#exports.delete(name);
  }

  /**
   * Takes no new clients and no new requests, ends those in flight (after `graceMs`, cuts them off), and says goodbye.
   * Again: the same end.
   */
  stop(graceMs: number = GRACE_MS): Promise<void> {
    this.#stopping ??= this.#stop(graceMs);
    return this.#stopping;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(graceMs: number): Promise<void> {
    try {
      await this.#members.stop(graceMs);
    } finally {
      for (const { detach } of this.#exports.values()) detach();
      this.#end();
    }
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#members.end();
    this.#directory?.remove();
    this.onEnd?.();
    this.onEnd = undefined;
  }

  /** Without one of its threads it is not what was asked for: it stops in the others, too. */
  #crashed(error: Error): void {
    if (this.#ended) return;
    this.stop(0).catch(() => undefined);
    if (this.listenerCount('crash') > 0) this.emit('crash', error);
  }
}

function exportMessage(entry: DiskExport): ExportMessage {
  return {
    disk: entry.disk.id,
    name: entry.exportName ?? '',
    description: entry.description ?? '',
    writable: !(entry.readOnly ?? entry.disk.readOnly),
    bitmaps: [...(entry.bitmaps ?? [])],
    allocationDepth: entry.allocationDepth ?? true,
    multiConn: entry.multiConn ?? true,
  };
}

function checkNumber(options: ServeNbdOptions, name: keyof typeof NBD_RANGES): void {
  const value = options[name];
  if (value === undefined) return;
  const { least, most } = NBD_RANGES[name];
  const whole = name === 'handshakeSeconds' || Number.isInteger(value);
  if (typeof value === 'number' && whole && value >= least && value <= most) return;
  throw new BlockError(Errno.EINVAL, `${name}: ${value} is not a number from ${least} to ${most}`);
}

async function stopOnAbort(service: NbdService, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return;
  service.onEnd = onAbort(signal, () => void service.stop().catch(() => undefined));
  if (!signal.aborted) return;
  await service.stop();
  throw signal.reason;
}

/**
 * Serves one disk, or several, to NBD clients; resolves once it accepts. It runs in IOThreads, so that no request ever
 * touches the program's thread. Without an address it listens on a unix socket in a private directory, which is removed
 * at the end.
 *
 * ```ts
 * const service = await serveNbd(disk, { socket: '/run/disk.sock', exportName: 'disk' });
 * console.log(service.uri);   // nbd+unix:///disk?socket=/run/disk.sock
 * await service.stop();
 * ```
 */
export async function serveNbd(
  disks: Disk | readonly (Disk | DiskExport)[],
  options: ServeNbdOptions = {},
): Promise<NbdService> {
  const { exportName, description, readOnly, bitmaps, allocationDepth, multiConn } = options;
  const given = Array.isArray(disks) ? (disks as readonly (Disk | DiskExport)[]) : [disks as Disk];
  const own = { exportName, description, readOnly, bitmaps, allocationDepth, multiConn };
  const entries = given.map((entry) => ('disk' in entry ? entry : { disk: entry, ...own }));
  const threads = threadsOf(entries, options.iothreads);
  for (const { disk } of entries) {
    if (disk.closed) throw new BlockError(Errno.EBADF, `Could not export '${disk.name}': it is closed`);
  }
  checkNumber(options, 'maxConnections');
  checkNumber(options, 'handshakeSeconds');
  checkNumber(options, 'byteBudget');
  options.signal?.throwIfAborted();
  const addresses = await listenOf(options);
  // A disk that is closed from here on closes once it is known whether it is served.
  const holds: (() => void)[] = [];
  const directory = addresses.length > 0 ? undefined : new PrivateDirectory();
  const listen = directory ? [{ kind: 'unix' as const, path: `${directory.path}/nbd.sock` }] : addresses;
  try {
    for (const { disk } of entries) holds.push(disk.hold());
    return await startService(
      threads,
      entries,
      { ...startOptions(options, threads.length), listen },
      directory,
      options,
    );
  } catch (error) {
    directory?.remove();
    throw error;
  } finally {
    for (const release of holds) release();
  }
}

function threadsOf(entries: readonly DiskExport[], given: readonly IOThread[] | undefined): readonly IOThread[] {
  const threads = given ?? entries.slice(0, 1).map(({ disk }) => disk.iothread);
  if (entries.length === 0) throw new BlockError(Errno.EINVAL, 'Could not serve: no disk was given');
  if (threads.length === 0) throw new BlockError(Errno.EINVAL, 'iothreads: there is none');
  if (new Set(threads).size < threads.length) throw new BlockError(Errno.EINVAL, 'iothreads: one is there twice');
  return threads;
}

/** Limits of each thread. */
function startOptions(options: ServeNbdOptions, threads: number) {
  const { socketMode, maxConnections, handshakeSeconds, byteBudget, tls } = options;
  const each = maxConnections && Math.ceil(maxConnections / threads);
  return { mode: socketMode ?? 0o600, maxConnections: each, handshakeSeconds, byteBudget, tls: tls && tlsMessage(tls) };
}

async function startService(
  threads: readonly IOThread[],
  entries: readonly DiskExport[],
  message: Parameters<NbdMembers['start']>[2],
  directory: PrivateDirectory | undefined,
  { signal }: ServeNbdOptions,
): Promise<NbdService> {
  const shown = entries.map((entry) => ({ disk: entry.disk, message: exportMessage(entry) }));
  const service = await NbdService.start(threads, shown, message, directory);
  try {
    for (const { disk, message: one } of shown) service.attach(disk, one.name);
    await stopOnAbort(service, signal);
    return service;
  } catch (error) {
    await service.stop(0).catch(() => undefined);
    throw error;
  }
}
