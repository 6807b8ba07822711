/**
 * The NBD server: listeners, clients, and a good end for both. What a client says is the business of handshake.ts and
 * of the transmission phase; this is who may come in, and how everybody gets out.
 */
import type { AioListener, AioSocket, ListenOptions, SocketAddress } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { Gate, WaitOp } from '../../aio/op.ts';
import type { Timer } from '../../aio/timers.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import type { Memory } from '../../base/memory.ts';
import type { Nanoseconds } from '../../base/units.ts';
import type { BackendUser, BlockBackend } from '../../block/backend.ts';
import { SecureSocket } from '../../tls/secure-socket.ts';
import type { TlsSide } from '../../tls/side.ts';
import { ByteBudget } from './budget.ts';
import { transmit } from './connection.ts';
import { ExportList, type HandedOver, type NbdExport } from './export-list.ts';
import {
  handshake,
  handshakeMemorySize,
  longestHandshakeMessage,
  type Negotiated,
  type TlsPolicy,
} from './handshake.ts';
import { type NbdLimits, type NbdTraffic, resolveLimits, StopSignal } from './limits.ts';

/** How long accepting rests after an error (out of descriptors, say). */
const ACCEPT_PAUSE_NS: Nanoseconds = 100e6;
/** When there is no room, a handshake of this age makes room for the next client: half-open connections keep nobody
 *  out. Handshakes take milliseconds. */
const EVICT_AFTER_NS: Nanoseconds = 500e6;
/**
 * How long a client waits at most for its connection to be handed over, before it is served through a channel, and how
 * long it is until that is tried again. What is in the way as a rule are requests under way, of milliseconds; a client
 * that does not read its replies must not stop for long what it writes.
 */
const LEAVE_NS: Nanoseconds = 100e6;
const STAY_NS: Nanoseconds = 1e9;
/** Handshake buffers that are kept for the next client. */
const SPARE_MEMORIES = 16;

export interface NbdServerOptions {
  readonly limits?: Partial<NbdLimits>;
  /** Told why a client has gone, for logs; `why` is the end of a sentence that begins with the peer. */
  readonly onClientEnd?: (peer: string, why: string) => void;
  readonly tls?: ServerTls | undefined;
}

export interface ServerTls {
  readonly side: TlsSide;
  /** Clients that do not begin TLS get nothing. */
  readonly required: boolean;
}

/** A listening socket that somebody else has made (systemd socket activation). */
export interface ListenFd {
  readonly kind: 'fd';
  readonly fd: number;
}

export interface NbdClientInfo {
  readonly peer: string;
  readonly state: 'handshake' | 'transmission';
  /** Undefined in the handshake. */
  readonly exportName: string | undefined;
  /** It came from the server of another thread, which counts it as its own. */
  readonly adopted: boolean;
}

export interface NbdServerStats {
  accepted: number;
  acceptErrors: number;
  /** Handshakes that led to the transmission phase, and those that did not. */
  handshakes: number;
  handshakeFailures: number;
  /** Handshakes that had to make room for others. */
  evicted: number;
}

class Client {
  readonly socket: AioSocket;
  readonly since: Nanoseconds;
  readonly stop = new StopSignal();
  export: NbdExport | undefined;
  /** A connection serves it in this thread. */
  served = false;
  evicted = false;
  /** Another server has greeted it, and counts it. */
  adopted = false;
  readonly tls: TlsPolicy | undefined;

  constructor(socket: AioSocket, since: Nanoseconds, tls: TlsPolicy | undefined) {
    this.socket = socket;
    this.since = since;
    this.tls = tls;
  }

  /** Its disk's home is another thread, where it can be served. */
  get elsewhere(): boolean {
    return this.socket.fd !== undefined && this.export?.otherHome?.elsewhere === true;
  }

  /** Ends it without regard to what is under way. */
  cut(): void {
    this.socket.shutdown();
    this.stop.onCut?.();
  }
}

/** Home thread only. */
export class NbdServer {
  readonly context: AioContext;
  readonly limits: NbdLimits;
  readonly stats: NbdServerStats = { accepted: 0, acceptErrors: 0, handshakes: 0, handshakeFailures: 0, evicted: 0 };
  readonly traffic: NbdTraffic = { requests: 0, errors: 0, bytesIn: 0, bytesOut: 0 };
  /** Payload memory of all connections. */
  readonly budget: ByteBudget;
  readonly #onClientEnd: (peer: string, why: string) => void;
  readonly #tls: ServerTls | undefined;
  readonly #exports: ExportList;
  readonly #listeners = new Set<AioListener>();
  /** In the order of their coming. */
  readonly #clients = new Set<Client>();
  /** What hears of drains, of each export. */
  readonly #users = new Map<NbdExport, BackendUser>();
  readonly #memories: Memory[] = [];
  /** Clients that follow their disk are on their way, or are asked to be. */
  readonly #departing: Timer;
  #acceptLoops = 0;
  #stopping: Promise<void> | undefined;
  /** Opens, and is replaced, whenever something changes that somebody may wait for. */
  #changed = new Gate();

  /** Throws EINVAL for limits that cannot work. */
  constructor(context: AioContext, options: NbdServerOptions = {}) {
    this.context = context;
    this.limits = resolveLimits(options.limits);
    this.budget = new ByteBudget(context, this.limits.maxBuffered, Math.min(this.limits.maxConnections || 256, 1024));
    this.budget.onStarved = () => {
      for (const client of this.#clients) client.stop.onStarved?.();
    };
    this.#departing = context.timer(() => this.#sendOn(!this.#leaving), 'nbd clients that leave');
    this.#exports = new ExportList(this.limits.maxExports);
    this.#onClientEnd = options.onClientEnd ?? (() => {});
    this.#tls = options.tls;
  }

  get addresses(): readonly SocketAddress[] {
    return [...this.#listeners].map((listener) => listener.address);
  }

  get exports(): readonly NbdExport[] {
    return [...this.#exports.list()];
  }

  get clients(): readonly NbdClientInfo[] {
    return [...this.#clients].map(({ socket, export: entry, adopted }) => ({
      adopted,
      peer: socket.peer,
      state: entry ? 'transmission' : 'handshake',
      exportName: entry?.name,
    }));
  }

  /** Offers `entry` to clients from now on. Throws EEXIST, EINVAL, ENOSPC. The caller keeps its BlockBackend open until
   *  {@link removeExport} or {@link stop} has resolved. */
  addExport(entry: NbdExport): void {
    try {
      this.#exports.add(entry);
    } catch (error) {
      entry.bitmaps?.release();
      throw error;
    }
    const user: BackendUser = {
      onDrainEnd: () => {
        for (const client of this.#clients) if (client.export === entry) client.stop.onResume?.();
      },
      cannotMove: () => (entry.bitmaps ? `NBD export '${entry.name}' shows dirty bitmaps` : undefined),
    };
    entry.blk.users.add(user);
    this.#users.set(entry, user);
  }

  /**
   * Takes an export away. `safe` refuses with EBUSY while clients use it, but for those that are about to leave for its
   * disk's home; `hard` cuts them off. Resolves once no request of theirs is in flight. Rejects with ENOENT for a name
   * that is not there.
   */
  async removeExport(name: string, mode: 'safe' | 'hard' = 'safe'): Promise<void> {
    const users = (): Client[] => [...this.#clients].filter((client) => entry && client.export === entry);
    let entry = this.#exports.find(name);
    while (mode === 'safe' && users().some(({ stop }) => stop.leaving)) {
      await this.#changed.promise;
      entry = this.#exports.find(name);
    }
    if (!entry) throw new BlockError(Errno.ENOENT, `Could not remove NBD export '${name}': there is none`);
    if (mode === 'safe' && users().length > 0) {
      throw new BlockError(Errno.EBUSY, `Could not remove NBD export '${name}': ${users().length} clients use it`);
    }
    this.#exports.remove(name);
    for (const client of users()) client.cut();
    while (users().length > 0) await this.#changed.promise;
    this.#letGo(entry);
  }

  /** True when an export shows `blk`. */
  serves(blk: BlockBackend): boolean {
    return this.exports.some((entry) => entry.blk === blk);
  }

  /** Exports of `from` go on with `to`, which shows the same disk, from their next request on. Those under way end
   *  where they are. Clients whose disk is elsewhere then follow it. */
  rehome(from: BlockBackend, to: BlockBackend): void {
    const changed = [...this.#users].filter(([{ blk }]) => blk === from);
    for (const [entry, user] of changed) {
      from.users.delete(user);
      entry.blk = to;
      to.users.add(user);
    }
    // First of all: what they begin from here on goes through a channel.
    if (changed.length > 0) this.#sendOn(true);
    for (const [, user] of changed) if (to.quiesce === 0) user.onDrainEnd?.();
  }

  get #leaving(): boolean {
    return [...this.#clients].some(({ stop }) => stop.leaving);
  }

  /** Has the connections of clients whose disk is elsewhere end, or go on here for a while. */
  #sendOn(leave: boolean): void {
    this.#departing.cancel();
    for (const { served, elsewhere, stop } of this.#clients) {
      stop.leave(leave && served && elsewhere);
      if (served && elsewhere) this.#departing.armIn(leave ? LEAVE_NS : STAY_NS);
    }
    this.#notify();
  }

  /** Begins to accept clients there; resolves to where it really listens. */
  async listen(address: SocketAddress | ListenFd, options?: ListenOptions): Promise<SocketAddress> {
    this.#assertNotStopping();
    const { backend } = this.context;
    const listener = await (address.kind === 'fd'
      ? backend.adoptListener(address.fd)
      : backend.listen(address, options));
    if (this.#stopping) {
      await listener.close();
      this.#assertNotStopping();
    }
    this.#listeners.add(listener);
    this.#acceptLoops++;
    this.context.run('nbd accept', async () => {
      await this.#accept(listener);
      this.#acceptLoops--;
      this.#notify();
    });
    return listener.address;
  }

  /** Its listening sockets once more, for a server in another thread. ENOTSUP where the backend cannot. */
  share(): ListenFd[] {
    return [...this.#listeners].map((listener) => {
      const fd = listener.share?.() ?? -Errno.ENOTSUP;
      if (fd >= 0) return { kind: 'fd', fd };
      throw new BlockError(-fd, `Could not serve in several threads: ${errnoText(-fd)}`);
    });
  }

  /** Serves one connected socket to its end, and closes it. For sockets that came otherwise than by {@link listen}. */
  async serve(socket: AioSocket): Promise<void> {
    const client = this.#client(socket);
    this.#clients.add(client);
    const why = this.#stopping ? 'the server is stopping' : await this.#converse(client);
    socket.shutdown();
    await this.#end(client);
    this.#onClientEnd(socket.peer, client.evicted ? 'it was too slow and others waited' : why);
  }

  /**
   * Serves a client that another thread's server has greeted (NbdExport.otherHome), to its end, or until the disk has
   * gone elsewhere: then it answers what the next server goes on from. One that cannot be served here is answered as it
   * came.
   */
  async adopt(socket: AioSocket, handed: HandedOver): Promise<HandedOver | undefined> {
    const client = new Client(socket, this.context.now(), undefined);
    client.adopted = true;
    client.export = this.#exports.find(handed.exportName);
    this.#clients.add(client);
    const { export: entry } = client;
    const here = entry && !client.elsewhere && !this.#stopping;
    const onward = here ? await this.#transmission(client, { ...handed, export: entry }) : handed;
    if (!onward) socket.shutdown();
    await this.#end(client);
    return onward;
  }

  async #end(client: Client): Promise<void> {
    await client.socket.close();
    this.#clients.delete(client);
    this.#notify();
  }

  #client(socket: AioSocket): Client {
    const now = this.context.now();
    if (!this.#tls) return new Client(socket, now, undefined);
    const { side, required } = this.#tls;
    const secure = new SecureSocket(this.context.backend, socket);
    return new Client(secure, now, { required, start: () => secure.secure(side) });
  }

  /**
   * Ends the server: no new clients, no new requests; those in flight finish and are answered. After `graceMs` the
   * connections that are left are cut, and only their requests in flight are waited for. May be called again.
   */
  stop(graceMs = 5000): Promise<void> {
    this.#stopping ??= this.#stop(graceMs * 1e6);
    return this.#stopping;
  }

  #letGo(entry: NbdExport): void {
    const user = this.#users.get(entry);
    if (user) entry.blk.users.delete(user);
    this.#users.delete(entry);
    entry.bitmaps?.release();
  }

  #assertNotStopping(): void {
    if (this.#stopping) throw new BlockError(Errno.ESHUTDOWN, 'Could not listen: the NBD server is stopping');
  }

  #notify(): void {
    const changed = this.#changed;
    this.#changed = new Gate();
    changed.open();
  }

  async #stop(grace: Nanoseconds): Promise<void> {
    const cut = (): void => {
      for (const client of this.#clients) client.cut();
    };
    const deadline = this.context.timer(cut, 'nbd stop deadline');
    deadline.armIn(grace);
    const closing = [...this.#listeners].map((listener) => listener.close());
    this.#listeners.clear();
    for (const client of this.#clients) {
      if (client.export) client.stop.raise();
      else client.socket.shutdown();
    }
    this.#notify();
    await Promise.all(closing);
    while (this.#acceptLoops > 0 || this.#clients.size > 0) await this.#changed.promise;
    deadline.cancel();
    this.#departing.cancel();
    for (const entry of this.#exports.list()) this.#letGo(entry);
    this.budget.close();
    this.#memories.length = 0;
  }

  async #accept(listener: AioListener): Promise<void> {
    const op = new WaitOp();
    const alarm = this.context.timer(() => this.#notify(), 'nbd accept pause');
    while (!this.#stopping) {
      const accepted = op.wait();
      listener.accept(op);
      const result = await accepted;
      if (result === -Errno.ECANCELED || result === -Errno.EBADF) break;
      if (result < 0) {
        this.stats.acceptErrors++;
        const until = this.context.now() + ACCEPT_PAUSE_NS;
        alarm.armIn(ACCEPT_PAUSE_NS);
        while (!this.#stopping && this.context.now() < until) await this.#changed.promise;
        continue;
      }
      const socket = listener.takeAccepted();
      this.stats.accepted++;
      // One client at most waits outside in each listener; the others stay in the backlog.
      while (!this.#stopping && !this.#makeRoom((ns) => alarm.armIn(ns))) await this.#changed.promise;
      this.context.run('nbd client', () => this.serve(socket));
    }
    alarm.cancel();
  }

  /** True when there is room for one more. Otherwise the oldest handshake has to leave, if not now then in the time
   * that
   *  `later` is told. */
  #makeRoom(later: (ns: Nanoseconds) => void): boolean {
    const { maxConnections } = this.limits;
    if (maxConnections === 0 || this.#clients.size < maxConnections) return true;
    for (const client of this.#clients) {
      if (client.evicted) return false;
      if (client.export) continue;
      const left = client.since + EVICT_AFTER_NS - this.context.now();
      if (left > 0) {
        later(left);
        return false;
      }
      client.evicted = true;
      this.stats.evicted++;
      client.socket.shutdown();
      return false;
    }
    return false;
  }

  /** The whole conversation with a client; returns why it ended. The socket is idle afterwards. */
  async #converse(client: Client): Promise<string> {
    const memory = this.#memories.pop() ?? this.#newMemory();
    const result = await handshake(this.context, client.socket, memory, this.#exports, this.limits, client.tls);
    if (this.#memories.length < SPARE_MEMORIES) this.#memories.push(memory);
    if ('ended' in result) {
      this.stats.handshakeFailures++;
      return result.ended;
    }
    this.stats.handshakes++;
    const { export: entry, ...agreed } = result;
    // The memory is the next client's.
    return this.#serve(client, entry, { ...agreed, buffered: agreed.buffered.slice() });
  }

  /** Serves a greeted client here or in its disk's home, wherever that goes. Returns why it ended. */
  async #serve(client: Client, entry: NbdExport, agreed: HandedOver): Promise<string> {
    const { fd } = client.socket;
    for (let handed: HandedOver | undefined = agreed; handed; ) {
      // Both may have come since somebody looked.
      if (this.#stopping) return 'the server is stopping';
      if (this.#exports.find(entry.name) !== entry) return 'its export was removed';
      client.export = entry;
      handed = client.elsewhere
        ? await entry.otherHome!.handOver(fd!, handed)
        : await this.#transmission(client, { ...handed, export: entry });
    }
    return 'the transmission has ended';
  }

  async #transmission(client: Client, negotiated: Negotiated): Promise<HandedOver | undefined> {
    const hooks = { stop: client.stop, traffic: this.traffic };
    client.served = true;
    const onward = await transmit(this.context, client.socket, negotiated, this.limits, this.budget, hooks);
    client.served = false;
    client.stop.leaving = false;
    return onward;
  }

  #newMemory(): Memory {
    const size = handshakeMemorySize(longestHandshakeMessage(this.limits));
    return this.context.backend.memory(new Uint8Array(new SharedArrayBuffer(size)));
  }
}

/** 'unix:/run/disk.sock' or '127.0.0.1:10809', for messages. */
export function addressText(address: SocketAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}
