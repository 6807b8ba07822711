/** The vhost-user services of an IOThread, by number. */
import type { SetupThread } from '../aio/iothread-worker.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { VhostUserBlkServer } from '../exports/vhost-user-blk/server.ts';
import type { VhostUserStartMessage, VhostUserStartReply, VhostUserStats } from './messages.ts';
import type { WorkerDisks } from './worker-disks.ts';

/** Services in one thread at a time. */
const MAX_SERVICES = 256;

export class WorkerVhostUser {
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly #servers = new Map<number, VhostUserBlkServer>();
  readonly #newId: () => number;

  /** `newId`: numbers that no other service of the thread has. */
  constructor(thread: SetupThread, disks: WorkerDisks, newId: () => number) {
    this.#thread = thread;
    this.#disks = disks;
    this.#newId = newId;
  }

  get count(): number {
    return this.#servers.size;
  }

  async start(message: VhostUserStartMessage): Promise<VhostUserStartReply> {
    const { disk, listen, mode, writable, queues, blockSize, serial } = message;
    if (this.#servers.size >= MAX_SERVICES) {
      throw new BlockError(Errno.EMFILE, `Could not serve: ${MAX_SERVICES} vhost-user services run in this IOThread`);
    }
    const blk = this.#disks.blk(disk);
    if (writable && blk.readOnly) {
      throw new BlockError(Errno.EROFS, `Could not export '${blk.name}' for writing: it is read-only`);
    }
    const service = this.#newId();
    const server = new VhostUserBlkServer(this.#thread.context, blk, {
      ...{ writable, queues, blockBytes: blockSize, serial },
      onConnect: () => this.#thread.emit('client', { service }),
      onDisconnect: (_peer, why) => this.#thread.emit('disconnect', { service, why }),
    });
    try {
      const address = await server.listen(listen, { mode });
      this.#servers.set(service, server);
      return { service, address };
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  async stop(service: number): Promise<VhostUserStats> {
    const server = this.#server(service);
    await server.stop();
    this.#servers.delete(service);
    return statsOf(server);
  }

  async stopAll(): Promise<void> {
    await Promise.all([...this.#servers.keys()].map((service) => this.stop(service)));
  }

  stats(service: number): VhostUserStats {
    return statsOf(this.#server(service));
  }

  #server(service: number): VhostUserBlkServer {
    const server = this.#servers.get(service);
    if (!server) throw new BlockError(Errno.EBADF, `Could not use vhost-user service ${service}: it does not run`);
    return server;
  }
}

function statsOf({ connected, connections }: VhostUserBlkServer): VhostUserStats {
  return { connected, connections };
}
