/** Disks as NBD exports. */
import { EventEmitter } from 'node:events';
import type { SocketAddress } from '../aio/backend.ts';
import { onAbort } from '../aio/on-abort.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, GiB, MiB } from '../base/units.ts';
import type { Abortable } from './abort.ts';
import type { Disk } from './disk.ts';
import type { IOThread } from './iothread.ts';
import { type Listen, type ListenTarget, listenOf } from './listen.ts';
import type { ExportMessage, NbdStartReply, NbdStats } from './messages.ts';
import { PrivateDirectory } from './private-directory.ts';
import { nbdUri } from './uri.ts';

export interface ExportOptions {
  /** What clients ask for; default '', the export of clients that name none. At most 4096 bytes of UTF-8. */
  readonly exportName?: string | undefined;
  /** For people, in listings. */
  readonly description?: string | undefined;
  /** Refuse writes; default: as the disk is. */
  readonly readOnly?: boolean | undefined;
  /**
   * Names of dirty bitmaps that clients may ask for, as the metadata contexts `qemu:dirty-bitmap:NAME`; at most 64.
   * While they are exported they are changed by writes only. A read-only export of a disk that is open for writing
   * takes disabled ones only (EINVAL), and the disk has to be in the service's thread (EINVAL), where they keep it.
   */
  readonly bitmaps?: readonly string[] | undefined;
}

/** One of several disks of a service. */
export interface DiskExport extends ExportOptions {
  readonly disk: Disk;
}

export interface ServeNbdOptions extends ListenTarget, ExportOptions, Abortable {
  /** Clients at a time, at most 10000; the next one waits. Default 100; 0 for no limit. */
  readonly maxConnections?: number | undefined;
  /** How long a client may take to say what it wants, in seconds; default 10, 0 for no limit. */
  readonly handshakeSeconds?: number | undefined;
  /** Payload memory of all connections together, in bytes, from 32 MiB to 1 GiB; default 64 MiB. */
  readonly byteBudget?: Bytes | undefined;
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

/** A running NBD server. 'crash' comes when its IOThread died; 'client' and 'disconnect' when clients come and go. */
export class NbdService extends EventEmitter<{ crash: [Error]; client: [string]; disconnect: [string] }> {
  /** Where it listens; ports are filled in. */
  readonly addresses: readonly SocketAddress[];
  readonly iothread: IOThread;
  readonly #id: number;
  readonly #exports = new Map<string, Offered>();
  readonly #directory: PrivateDirectory | undefined;
  readonly #onCrash = (error: Error): void => this.#crashed(error);
  /** @internal Runs once when it has ended. */
  onEnd: (() => void) | undefined;
  #stopping: Promise<void> | undefined;
  #ended = false;
  #clients = 0;
  #last: NbdStats | undefined;

  /** @internal Use serveNbd(). */
  constructor(iothread: IOThread, reply: NbdStartReply, directory: PrivateDirectory | undefined) {
    super();
    this.iothread = iothread;
    this.addresses = reply.addresses;
    this.#id = reply.service;
    this.#directory = directory;
    iothread.on('crash', this.#onCrash);
    iothread.hold();
    iothread.listen(reply.service, (name, payload) => this.#event(name, payload));
  }

  /** Clients connected now. */
  get clients(): number {
    return this.#clients;
  }

  /** The URI of the export that was added first. */
  get uri(): string {
    return this.uris[0]!;
  }

  /** One URI an export, in the order they were added. */
  get uris(): string[] {
    return [...this.#exports.keys()].map((name) => nbdUri(this.addresses[0]!, name));
  }

  /** Totals since it began; after `stop`, the last ones. */
  async stats(): Promise<NbdStats> {
    return this.#last ?? this.iothread.call('nbd-stats', { service: this.#id });
  }

  /** Offers one more disk. One that has its home in another IOThread is reached through a channel, without its bitmaps
   *  (EINVAL). */
  async addExport(entry: DiskExport): Promise<void> {
    const message = exportMessage(entry);
    const { name } = message;
    // The disk stays open until it is known whether its export does.
    const release = entry.disk.hold();
    try {
      await entry.disk.shownIn(this.iothread, () =>
        this.iothread.call('nbd-add', { service: this.#id, export: message }),
      );
      try {
        this.attach(entry.disk, name);
      } catch (error) {
        if (!this.#ended) await this.iothread.call('nbd-remove', { service: this.#id, name, mode: 'hard' });
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
      else await this.iothread.call('nbd-remove', { service: this.#id, name, mode });
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
      this.#last = await this.iothread.call('nbd-stop', { service: this.#id, graceMs });
    } catch (error) {
      // The thread stops its services itself when it is stopped.
      if (!(error instanceof BlockError && error.errno === Errno.ESHUTDOWN)) throw error;
    } finally {
      for (const { detach } of this.#exports.values()) detach();
      this.#end();
    }
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.iothread.unhold();
    this.iothread.off('crash', this.#onCrash);
    this.iothread.listen(this.#id, undefined);
    this.#directory?.remove();
    this.onEnd?.();
    this.onEnd = undefined;
  }

  #crashed(error: Error): void {
    this.#end();
    if (this.listenerCount('crash') > 0) this.emit('crash', error);
  }

  #event(name: string, payload: unknown): void {
    const { peer, clients } = payload as { readonly peer: string; readonly clients: number };
    this.#clients = clients;
    if (name === 'client' || name === 'disconnect') this.emit(name, peer);
  }
}

function exportMessage(entry: DiskExport): ExportMessage {
  return {
    disk: entry.disk.id,
    name: entry.exportName ?? '',
    description: entry.description ?? '',
    writable: !(entry.readOnly ?? entry.disk.readOnly),
    bitmaps: [...(entry.bitmaps ?? [])],
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
 * Serves one disk, or several, to NBD clients; resolves once it accepts. It runs in the IOThread that the first disk is
 * in, so that no request ever touches the program's thread; disks of other threads are reached through channels.
 * Without an address it listens on a unix socket in a private directory, which is removed at the end.
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
  const { exportName, description, readOnly, bitmaps } = options;
  const given = Array.isArray(disks) ? (disks as readonly (Disk | DiskExport)[]) : [disks as Disk];
  const own = { exportName, description, readOnly, bitmaps };
  const entries = given.map((entry) => ('disk' in entry ? entry : { disk: entry, ...own }));
  const thread = entries[0]?.disk.iothread;
  if (!thread) throw new BlockError(Errno.EINVAL, 'Could not serve: no disk was given');
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
  try {
    for (const { disk } of entries) holds.push(disk.hold());
    let start = (): Promise<NbdService> => startService(thread, entries, addresses, options);
    for (const disk of new Set(entries.map((entry) => entry.disk))) {
      const next = start;
      start = () => disk.shownIn(thread, next);
    }
    return await start();
  } finally {
    for (const release of holds) release();
  }
}

async function startService(
  thread: IOThread,
  entries: readonly DiskExport[],
  addresses: readonly Listen[],
  options: ServeNbdOptions,
): Promise<NbdService> {
  const directory = addresses.length > 0 ? undefined : new PrivateDirectory();
  const exports = entries.map(exportMessage);
  let service: NbdService | undefined;
  try {
    const reply = await thread.call('nbd-start', {
      listen: directory ? [{ kind: 'unix', path: `${directory.path}/nbd.sock` }] : addresses,
      mode: options.socketMode ?? 0o600,
      exports,
      maxConnections: options.maxConnections,
      handshakeSeconds: options.handshakeSeconds,
      byteBudget: options.byteBudget,
    });
    service = new NbdService(thread, reply, directory);
    for (const [i, { disk }] of entries.entries()) service.attach(disk, exports[i]!.name);
    await stopOnAbort(service, options.signal);
    return service;
  } catch (error) {
    await service?.stop(0).catch(() => undefined);
    directory?.remove();
    throw error;
  }
}
