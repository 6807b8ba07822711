/**
 * The disks of an IOThread that leave it or come to it: see docs/CHANNELS.md, "Moving a tree". The program's thread
 * says what is next (move-disk.ts); nothing else is asked of a disk meanwhile, but the thread may be stopped.
 */
import type { MessagePort } from 'node:worker_threads';
import { receiveMessageOnPort } from 'node:worker_threads';
import type { SetupThread } from '../aio/iothread-worker.ts';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { IoCounters } from '../block/io-counters.ts';
import { activateNodes, type Leaving, moveOut, takeBitmaps } from '../block/move.ts';
import { descriptorOf, newOffer } from '../channel/descriptor.ts';
import { ChannelHost } from '../channel/host.ts';
import type { ChannelOffer, MovedChannel } from '../channel/layout.ts';
import { closeGuest, openGuest } from '../channel/remote-node.ts';
import { ChannelRequest } from '../channel/server-channel.ts';
import type {
  LinkMessage,
  MoveCommitMessage,
  MovedDisk,
  MoveInMessage,
  MoveInReply,
  MoveOutMessage,
} from './move-messages.ts';
import type { DiskServer } from './service-table.ts';
import type { WorkerDisks } from './worker-disks.ts';

/** A disk that has been opened here, before and while its channels come. */
class Arrival {
  readonly blk: BlockBackend;
  readonly host: ChannelHost;
  readonly link: MessagePort;
  /** Opens when the move has ended, well or not. */
  readonly ended = new Gate();
  switched = false;

  constructor(blk: BlockBackend, host: ChannelHost, link: MessagePort) {
    this.blk = blk;
    this.host = host;
    this.link = link;
  }
}

export class WorkerMoves {
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly #servers: readonly DiskServer[];
  readonly #leaving = new Map<number, Leaving>();
  readonly #arriving = new Map<number, Arrival>();
  /** Steps that are under way. */
  readonly #running = new Set<Promise<unknown>>();

  /** `servers`: who may show a disk that moves. */
  constructor(thread: SetupThread, disks: WorkerDisks, servers: readonly DiskServer[]) {
    this.#thread = thread;
    this.#disks = disks;
    this.#servers = servers;
  }

  /** A step of a move that the end of the thread waits for. */
  async run<T>(step: () => Promise<T>): Promise<T> {
    const running = step();
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  // The old home.

  async out({ disk, to }: MoveOutMessage): Promise<MovedDisk> {
    const blk = this.#disks.blk(disk);
    const host = this.#disks.host(disk);
    const { name, readOnly, writethrough } = blk;
    const { disk: words, counters } = host.identity;
    host.freeze();
    try {
      const leaving = await moveOut(blk, name, `IOThread '${to}'`);
      this.#leaving.set(disk, leaving);
      return { name, tree: leaving.tree, readOnly, writethrough, words, counters };
    } catch (error) {
      host.thaw();
      throw error;
    }
  }

  async back(disk: number): Promise<void> {
    const leaving = this.#taken(disk);
    try {
      await leaving.back();
    } finally {
      this.#disks.host(disk).thaw();
    }
  }

  #taken(disk: number): Leaving {
    const leaving = this.#leaving.get(disk);
    if (!leaving) throw new BlockError(Errno.EBADF, `Could not move disk ${disk}: it is not on its way`);
    this.#leaving.delete(disk);
    return leaving;
  }

  async commit({ disk, link, identity, optimal }: MoveCommitMessage): Promise<boolean> {
    const blk = this.#disks.blk(disk);
    let gone = false;
    link.on('close', () => {
      gone = true;
    });
    link.unref();
    const { offer, port } = newOffer();
    let guest: BlockBackend | undefined;
    try {
      if (this.#servers.some((server) => server.serves(blk))) {
        const descriptor = descriptorOf(identity, offer.words, port);
        guest = await openGuest(this.#thread.context, descriptor, { name: blk.name, optimal });
      }
      if (gone || !this.#leaving.has(disk)) {
        throw new BlockError(Errno.ESHUTDOWN, `Could not move '${blk.name}': one of its threads is being stopped`);
      }
    } catch (error) {
      link.close();
      offer.port.close();
      if (guest) await closeGuest(guest);
      throw error;
    }
    if (!guest) offer.port.close();
    this.#switch(disk, blk, guest, guest && offer, link);
    await ended(blk);
    return guest !== undefined;
  }

  /** The switch, in one go. */
  #switch(
    disk: number,
    blk: BlockBackend,
    guest: BlockBackend | undefined,
    offer: ChannelOffer | undefined,
    link: MessagePort,
  ): void {
    const leaving = this.#taken(disk);
    const queue = blk.takeQueue();
    const channels = this.#disks.host(disk).depart(queue);
    if (offer) channels.push(newChannel(offer));
    link.postMessage(
      { channels } satisfies LinkMessage,
      channels.map(({ port }) => port),
    );
    link.close();
    // Its counters are the new home's.
    blk.stats = new IoCounters();
    this.#disks.remove(disk, guest);
    if (guest) for (const server of this.#servers) server.rehome(blk, guest);
    for (const request of queue) {
      if (request instanceof ChannelRequest) continue;
      if (guest) guest.submit(request);
      else request.done(-Errno.ESHUTDOWN);
    }
    leaving.end();
  }

  // The new home.

  async in({ disk, moved, link }: MoveInMessage): Promise<MoveInReply> {
    const { context } = this.#thread;
    const { name, readOnly, writethrough, tree, words, counters } = moved;
    this.#disks.assertRoom(name);
    const stats = new IoCounters(counters);
    const blk = await BlockBackend.open(context, tree.options, { name, readOnly, writethrough, stats });
    try {
      await takeBitmaps(blk.root!, tree.bitmaps);
    } catch (error) {
      await ended(blk);
      throw error;
    }
    const arrival = new Arrival(blk, new ChannelHost(blk, words), link);
    this.#arriving.set(disk, arrival);
    link.on('message', (message: LinkMessage) => this.#arrived(disk, arrival, message));
    link.unref();
    return { identity: arrival.host.identity, nodeName: blk.root!.name, optimal: blk.limits.optimal };
  }

  #arrived(disk: number, arrival: Arrival, { channels }: LinkMessage): void {
    const { blk, host, link } = arrival;
    const guest = this.#disks.guest(disk);
    arrival.switched = true;
    this.#disks.put(disk, blk, host);
    host.arrive(channels);
    if (guest) for (const server of this.#servers) server.rehome(guest, blk);
    link.close();
    this.#thread.context.run(`move of '${blk.name}'`, async () => {
      try {
        await activateNodes(blk.root!);
        arrival.ended.open();
      } catch (error) {
        arrival.ended.fail(error);
      }
    });
    // Its requests end in the channel that has just come here.
    if (guest) this.#thread.context.run(`guest '${guest.name}'`, () => closeGuest(guest));
  }

  async done(disk: number): Promise<void> {
    const arrival = this.#arriving.get(disk);
    if (!arrival) throw new BlockError(Errno.EBADF, `Could not move disk ${disk}: it is not on its way`);
    try {
      await arrival.ended.promise;
    } finally {
      this.#arriving.delete(disk);
    }
  }

  async drop(disk: number): Promise<boolean> {
    const arrival = this.#arriving.get(disk);
    if (!arrival) return true;
    const message = receiveMessageOnPort(arrival.link);
    if (message && !arrival.switched) this.#arrived(disk, arrival, message.message as LinkMessage);
    if (arrival.switched) return false;
    await this.#giveUp(disk, arrival);
    return true;
  }

  async #giveUp(disk: number, { blk, host, link }: Arrival): Promise<void> {
    this.#arriving.delete(disk);
    link.removeAllListeners();
    link.close();
    host.giveUp();
    await ended(blk);
  }

  /** The thread is to end. What is on its way out stays inactive, since it may be open elsewhere by now. */
  async stop(): Promise<void> {
    while (this.#running.size > 0) await Promise.allSettled([...this.#running]);
    for (const disk of [...this.#leaving.keys()]) {
      this.#taken(disk);
      const blk = this.#disks.blk(disk);
      for (const request of blk.takeQueue()) request.done(-Errno.ESHUTDOWN);
    }
    await Promise.all([...this.#arriving.keys()].map((disk) => this.drop(disk)));
  }
}

/** Closes a disk that goes on elsewhere: there is nothing on this side that its failure could tell of. */
async function ended(blk: BlockBackend): Promise<void> {
  try {
    await blk.close();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

/** One that nothing has gone through yet. */
function newChannel(offer: ChannelOffer): MovedChannel {
  return { ...offer, regions: [], taken: 0, answered: 0, cancels: 0, waiting: [], drains: 0, client: undefined };
}
