/** The NBD services of an IOThread, by number. */
import type { AioSocket } from '../aio/backend.ts';
import type { AioContext } from '../aio/context.ts';
import type { SetupThread } from '../aio/iothread-worker.ts';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { type ExportBitmaps, exportBitmaps } from '../exports/nbd/bitmaps.ts';
import type { HandedOver, OtherHome } from '../exports/nbd/export-list.ts';
import { answering, RemoteBitmaps } from '../exports/nbd/remote-bitmaps.ts';
import { NbdServer, type NbdServerOptions, type ServerTls } from '../exports/nbd/server.ts';
import type {
  ExportMessage,
  NbdAdoptMessage,
  NbdClientEvent,
  NbdHandOverEvent,
  NbdOverMessage,
  NbdStartMessage,
  NbdStartReply,
  NbdStats,
} from './messages.ts';
import { assertWritable, ServiceTable } from './service-table.ts';
import type { TlsMessage } from './tls-options.ts';
import type { WorkerDisks } from './worker-disks.ts';

/** Milliseconds that clients get when the thread stops. */
const THREAD_GRACE_MS = 5000;

/** Tells of clients as they come and go. */
class TellingServer extends NbdServer {
  readonly #tell: (name: 'client' | 'disconnect', peer: string) => void;

  constructor(context: AioContext, options: NbdServerOptions, tell: (name: string, peer: string) => void) {
    super(context, options);
    this.#tell = tell;
  }

  override async serve(socket: AioSocket): Promise<void> {
    const { peer } = socket;
    const served = super.serve(socket);
    this.#tell('client', peer);
    await served;
    this.#tell('disconnect', peer);
  }
}

export class WorkerNbd {
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly services: ServiceTable<NbdServer>;
  #tokens = 0;
  /** Clients that the server of another thread serves, by service and token. */
  readonly #handed = new Map<string, Gate<HandedOver | undefined>>();

  /** `newId`: numbers that no other service of the thread has. */
  constructor(thread: SetupThread, disks: WorkerDisks, newId: () => number) {
    this.#thread = thread;
    this.#disks = disks;
    this.services = new ServiceTable('NBD', newId);
  }

  async start(message: NbdStartMessage): Promise<NbdStartReply> {
    const service = this.services.reserve();
    const { maxConnections, handshakeSeconds, byteBudget, listen, mode } = message;
    const limits = {
      ...(maxConnections === undefined ? {} : { maxConnections }),
      ...(handshakeSeconds === undefined ? {} : { handshakeNs: Math.round(handshakeSeconds * 1e9) }),
      ...(byteBudget === undefined ? {} : { maxBuffered: byteBudget }),
    };
    const tls = message.tls && (await serverTls(message.tls));
    const server: NbdServer = new TellingServer(this.#thread.context, { limits, tls }, (name, peer) => {
      const { handshakes } = server.stats;
      const event: NbdClientEvent = { service, peer, clients: server.clients.length, handshakes };
      this.#thread.emit(name, event);
    });
    this.services.set(service, server);
    try {
      for (const entry of message.exports) this.add(service, entry);
      for (const address of listen) await server.listen(address, mode === undefined ? {} : { mode });
      return { service, addresses: server.addresses };
    } catch (error) {
      this.services.delete(service);
      await server.stop(0);
      throw error;
    }
  }

  add(service: number, entry: ExportMessage): void {
    const { name, description } = entry;
    const blk = this.#disks.shown(entry.disk);
    assertWritable(blk, entry.writable);
    const { writable, allocationDepth, multiConn } = entry;
    const server = this.services.get(service);
    const common = { blk, writable, allocationDepth, multiConn };
    const bitmaps = this.#bitmaps(entry);
    const otherHome = entry.atHome ? this.#otherHome(service, entry.disk) : undefined;
    server.addExport({ name, description, ...common, bitmaps, otherHome });
  }

  #otherHome(service: number, disk: number): OtherHome {
    const disks = this.#disks;
    return {
      get elsewhere(): boolean {
        return disks.guest(disk) !== undefined;
      },
      handOver: (fd, handed) => this.#handOver(service, fd, handed),
    };
  }

  #bitmaps({ disk, bitmaps, bitmapPorts: ports = [], writable }: ExportMessage): ExportBitmaps | undefined {
    if (bitmaps.length === 0) return undefined;
    const blk = this.#disks.shown(disk);
    if (!this.#disks.guest(disk)) {
      const own = exportBitmaps(blk, bitmaps, writable)!;
      return ports.length > 0 ? answering(own, ports) : own;
    }
    const names = bitmaps.map((bitmap) => (typeof bitmap === 'string' ? bitmap : bitmap.name));
    if (ports[0]) return new RemoteBitmaps(ports[0], names);
    throw new BlockError(Errno.EINVAL, `Could not export bitmaps of '${blk.name}': it is in another IOThread`);
  }

  #handOver(service: number, fd: number, handed: HandedOver): Promise<HandedOver | undefined> {
    const token = ++this.#tokens;
    const over = new Gate<HandedOver | undefined>();
    this.#handed.set(`${service} ${token}`, over);
    this.#thread.emit('hand-over', { service, token, fd, handed } satisfies NbdHandOverEvent);
    return over.promise;
  }

  /** See NbdOverMessage. */
  over({ service, token, handed }: NbdOverMessage): void {
    const key = `${service} ${token}`;
    this.#handed.get(key)?.open(handed);
    this.#handed.delete(key);
  }

  async adopt({ service, fd, handed }: NbdAdoptMessage): Promise<HandedOver | undefined> {
    const server = this.services.get(service);
    return server.adopt(await this.#thread.context.backend.adoptSocket(fd, true), handed);
  }

  share(service: number): NbdStartMessage['listen'] {
    return this.services.get(service).share();
  }

  async remove(service: number, name: string, mode: 'safe' | 'hard'): Promise<void> {
    await this.services.get(service).removeExport(name, mode);
  }

  async stop(service: number, graceMs: number): Promise<NbdStats> {
    const server = this.services.get(service);
    await server.stop(graceMs);
    this.services.delete(service);
    return statsOf(server);
  }

  async stopAll(): Promise<void> {
    await this.services.stopAll((service) => this.stop(service, THREAD_GRACE_MS));
  }

  stats(service: number): NbdStats {
    return statsOf(this.services.get(service));
  }
}

/** Node's TLS is loaded where it is used. */
async function serverTls({ credentials, required, authz }: TlsMessage): Promise<ServerTls> {
  const { serverSide } = await import('../tls/side.ts');
  return { side: await serverSide(credentials, authz), required };
}

function statsOf(server: NbdServer): NbdStats {
  const clients = server.clients.filter(({ adopted }) => !adopted).length;
  return { clients, connections: server.stats.accepted, ...server.traffic };
}
