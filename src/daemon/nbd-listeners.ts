/** The NBD servers of a daemon. Each shows all NBD exports; there may be several, on different addresses. */
import type { Disk } from '../lib/disk.ts';
import type { IOThread } from '../lib/iothread.ts';
import { type DiskExport, NbdService } from '../lib/nbd.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import { serverTlsOf } from '../lib/objects/tls.ts';
import { tlsMessage } from '../lib/tls-options.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import { addressText } from './chardev/address.ts';
import { listening } from './listening.ts';
import type { MoveAttendant } from './nodes.ts';

type ServerOptions = Qapi<'NbdServerOptions'>;

/** Servers at a time. */
const SERVERS_MAX = 16;

export class NbdListeners implements MoveAttendant {
  readonly #home: IOThread;
  readonly #objects: ObjectStore;
  /** By their address. */
  readonly #servers = new Map<string, NbdService>();
  readonly #exports = new Map<string, DiskExport>();

  /** `objects`: where credentials are. */
  constructor(home: IOThread, objects: ObjectStore) {
    this.#home = home;
    this.#objects = objects;
  }

  async start(options: ServerOptions): Promise<void> {
    const key = addressText(options.addr);
    if (this.#servers.has(key)) throw new QmpError('NBD server already running');
    if (this.#servers.size >= SERVERS_MAX) throw new QmpError(`${SERVERS_MAX} NBD servers are running already`);
    const settings = {
      mode: undefined,
      maxConnections: options['max-connections'],
      handshakeSeconds: options['handshake-max-seconds'],
      byteBudget: undefined,
      tls: this.#tls(options),
    };
    const server = await listening(options.addr, (listen) =>
      NbdService.start([this.#home], [], { ...settings, listen }, undefined, true),
    );
    try {
      for (const entry of this.#exports.values()) await server.addExport(entry);
    } catch (error) {
      await server.stop(0);
      throw error;
    }
    this.#servers.set(key, server);
  }

  #tls({ 'tls-creds': creds, 'tls-authz': authz }: ServerOptions) {
    if (creds !== undefined) return tlsMessage(serverTlsOf(this.#objects, creds, authz));
    if (authz === undefined) return undefined;
    throw new QmpError('TLS authorization is not permitted without TLS credentials');
  }

  assertRunning(): void {
    if (this.#servers.size === 0) throw new QmpError('NBD server not running');
  }

  has(name: string): boolean {
    return this.#exports.has(name);
  }

  /** Shows an export in every server, or in none. */
  async add(name: string, entry: DiskExport): Promise<void> {
    if (this.#exports.has(name)) throw new QmpError(`NBD server already has export named '${name}'`);
    const added: NbdService[] = [];
    try {
      for (const server of this.#servers.values()) {
        await server.addExport(entry);
        added.push(server);
      }
    } catch (error) {
      for (const server of added) await server.removeExport(name, 'hard');
      throw error;
    }
    this.#exports.set(name, entry);
  }

  /** `safe`: EBUSY where a client uses it, and it stays in every server. */
  async remove(name: string, mode: 'safe' | 'hard'): Promise<void> {
    const entry = this.#exports.get(name);
    const removed: NbdService[] = [];
    try {
      for (const server of this.#servers.values()) {
        await server.removeExport(name, mode);
        removed.push(server);
      }
    } catch (error) {
      if (entry) for (const server of removed) await server.addExport(entry);
      throw error;
    }
    this.#exports.delete(name);
  }

  async prepare(disks: readonly Disk[], to: IOThread): Promise<void> {
    for (const server of this.#servers.values()) for (const disk of disks) await server.prepare(disk, to);
  }

  async settle(disks: readonly Disk[]): Promise<void> {
    for (const server of this.#servers.values()) for (const disk of disks) await server.settle(disk);
  }

  /** Stops all of them; whoever calls has taken the exports away. */
  async stop(): Promise<void> {
    const servers = [...this.#servers.values()];
    this.#servers.clear();
    this.#exports.clear();
    await Promise.all(servers.map((server) => server.stop(GRACE_MS)));
  }
}

/** Milliseconds that requests in flight get to end. */
const GRACE_MS = 5000;
