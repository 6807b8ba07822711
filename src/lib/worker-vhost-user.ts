/** The vhost-user services of an IOThread, by number, and the queues that it has of services in other threads. */
import type { MessagePort } from 'node:worker_threads';
import type { SetupThread } from '../aio/iothread-worker.ts';
import type { BlockBackend } from '../block/backend.ts';
import { DeviceMessages } from '../exports/vhost-user-blk/device-messages.ts';
import { MemberLink, reportBroken, serveMember } from '../exports/vhost-user-blk/members.ts';
import { DeviceUser, VhostUserBlkServer } from '../exports/vhost-user-blk/server.ts';
import type { VhostUserMemberMessage, VhostUserStartMessage, VhostUserStartReply, VhostUserStats } from './messages.ts';
import { assertWritable, type DiskServer, ServiceTable } from './service-table.ts';
import type { WorkerDisks } from './worker-disks.ts';

interface Member {
  readonly user: DeviceUser;
  readonly port: MessagePort;
  readonly ended: Promise<void>;
}

export class WorkerVhostUser implements DiskServer {
  readonly services: ServiceTable<VhostUserBlkServer>;
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly #members = new Set<Member>();

  /** `newId`: numbers that no other service of the thread has. */
  constructor(thread: SetupThread, disks: WorkerDisks, newId: () => number) {
    this.#thread = thread;
    this.#disks = disks;
    this.services = new ServiceTable('vhost-user', newId);
  }

  async start(message: VhostUserStartMessage): Promise<VhostUserStartReply> {
    const { disk, listen, mode, shape, members } = message;
    const service = this.services.reserve();
    const blk = this.#disks.shown(disk);
    assertWritable(blk, shape.writable);
    const server = new VhostUserBlkServer(this.#thread.context, blk, {
      ...shape,
      members: { links: members.ports.map((port) => new MemberLink(port)), placement: members.placement },
      onConnect: () => this.#thread.emit('client', { service }),
      onDisconnect: (_peer, why) => this.#thread.emit('disconnect', { service, why }),
    });
    try {
      const address = await server.listen(listen, { mode });
      this.services.set(service, server);
      return { service, address };
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  /** Serves queues of a device whose service is in another thread, until that closes the port. */
  join({ disk, shape, port }: VhostUserMemberMessage): void {
    const blk = this.#disks.shown(disk);
    assertWritable(blk, shape.writable);
    const user = new DeviceUser(this.#thread.context, blk, shape);
    user.device.onBroken = (queue, why) => reportBroken(port, queue, why);
    const ended = serveMember(port, new DeviceMessages(user.device)).then(() => {
      user.close();
      this.#members.delete(member);
    });
    const member = { user, port, ended };
    this.#members.add(member);
  }

  async stop(service: number): Promise<VhostUserStats> {
    const server = this.services.get(service);
    await server.stop();
    this.services.delete(service);
    return statsOf(server);
  }

  async stopAll(): Promise<void> {
    const members = [...this.#members];
    for (const { port } of members) port.close();
    await Promise.all([this.services.stopAll((service) => this.stop(service)), ...members.map(({ ended }) => ended)]);
  }

  stats(service: number): VhostUserStats {
    return statsOf(this.services.get(service));
  }

  serves(blk: BlockBackend): boolean {
    return this.services.serves(blk) || [...this.#members].some(({ user }) => user.serves(blk));
  }

  rehome(from: BlockBackend, to: BlockBackend): void {
    this.services.rehome(from, to);
    for (const { user } of this.#members) user.rehome(from, to);
  }
}

function statsOf({ connected, connections }: VhostUserBlkServer): VhostUserStats {
  return { connected, connections };
}
