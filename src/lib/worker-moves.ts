/**
 * Disks and nodes of an IOThread that leave it or come to it: see docs/CHANNELS.md, "Moving a tree". The program's
 * thread says what is next (move.ts); nothing else is asked of them meanwhile, but the thread may be stopped.
 */
import type { MessagePort } from 'node:worker_threads';
import { receiveMessageOnPort } from 'node:worker_threads';
import type { SetupThread } from '../aio/iothread-worker.ts';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { BlockBackend } from '../block/backend.ts';
import { IoCounters } from '../block/io-counters.ts';
import {
  activate,
  assertMovable,
  type Departure,
  type Leaving,
  letGo,
  moveIn,
  moveOut,
  nodesAround,
  nodesBelow,
} from '../block/move.ts';
import type { BlockNode } from '../block/node.ts';
import { nodeByName } from '../block/registry.ts';
import { descriptorOf, newOffer } from '../channel/descriptor.ts';
import { ChannelHost } from '../channel/host.ts';
import type { ChannelOffer, MovedChannel } from '../channel/layout.ts';
import { closeGuest, openGuest } from '../channel/remote-node.ts';
import { ChannelRequest } from '../channel/server-channel.ts';
import type { HeldNodes } from './held-nodes.ts';
import type {
  ArrivedDisk,
  LinkMessage,
  MoveAskMessage,
  MoveCommitMessage,
  Moved,
  MovedDisk,
  MoveInMessage,
  MoveOutMessage,
} from './move-messages.ts';
import type { DiskServer } from './service-table.ts';
import type { WorkerDisks } from './worker-disks.ts';

type Disks = ReadonlyMap<number, BlockBackend>;

/** What would go, and who goes along. */
interface Plan extends Departure {
  readonly disks: Disks;
}

/** Nodes that rest here until it is known where they go on. */
interface Outgoing {
  readonly leaving: Leaving;
  readonly disks: Disks;
  readonly held: readonly BlockNode[];
}

/** What stays behind of a disk, for who shows it. */
interface Guest {
  readonly blk: BlockBackend;
  readonly offer: ChannelOffer;
}

/** Nodes that have been opened here, before and while the channels of their disks come. */
class Arrival {
  readonly nodes: readonly BlockNode[];
  readonly held: readonly BlockNode[];
  readonly disks: ReadonlyMap<number, ChannelHost>;
  readonly link: MessagePort;
  /** Opens when the move has ended, well or not. */
  readonly ended = new Gate();
  switched = false;

  constructor(
    nodes: readonly BlockNode[],
    held: readonly BlockNode[],
    disks: ReadonlyMap<number, ChannelHost>,
    link: MessagePort,
  ) {
    this.nodes = nodes;
    this.held = held;
    this.disks = disks;
    this.link = link;
  }
}

export class WorkerMoves {
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  readonly #held: HeldNodes;
  readonly #servers: readonly DiskServer[];
  readonly #leaving = new Map<number, Outgoing>();
  readonly #arriving = new Map<number, Arrival>();
  /** Steps that are under way. */
  readonly #running = new Set<Promise<unknown>>();

  /** `servers`: who may show a disk that moves. */
  constructor(thread: SetupThread, disks: WorkerDisks, held: HeldNodes, servers: readonly DiskServer[]) {
    this.#thread = thread;
    this.#disks = disks;
    this.#held = held;
    this.#servers = servers;
  }

  /** A step of a move, or for one, that the end of the thread waits for. */
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

  ask(message: MoveAskMessage): number[] {
    const plan = this.#plan(message);
    assertMovable(plan);
    return [...plan.disks.keys()];
  }

  #plan({ subject, to }: MoveAskMessage): Plan {
    const where = `IOThread '${to}'`;
    if ('disk' in subject) {
      const blk = this.#disks.blk(subject.disk);
      const nodes = (): BlockNode[] => {
        if (blk.root) return nodesBelow(blk.root);
        throw new BlockError(Errno.ENOMEDIUM, `Could not move '${blk.name}' to ${where}: it has no medium`);
      };
      const disks = new Map([[subject.disk, blk]]);
      return { name: blk.name, where, nodes, disks, backends: new Set([blk]), held: new Set() };
    }
    const nodes = (): BlockNode[] => nodesAround(nodeByName(subject.node));
    const disks = this.#disks.numbered(new Set(nodes().flatMap(({ parents }) => parents)));
    const held = new Set(this.#held.all);
    return { name: subject.node, where, nodes, disks, backends: new Set(disks.values()), held };
  }

  async out(message: MoveOutMessage): Promise<Moved> {
    const plan = this.#plan(message);
    const disks = [...plan.disks].map(([disk, blk]) => ({ disk, blk, host: this.#disks.host(disk) }));
    for (const { host } of disks) host.freeze();
    try {
      const leaving = await moveOut(plan);
      const held = leaving.graph.map(({ name }) => name).filter((name) => this.#held.has(name));
      const nodes = held.map(nodeByName).reverse();
      this.#leaving.set(message.move, { leaving, disks: plan.disks, held: nodes });
      return { graph: leaving.graph, held, disks: disks.map(({ disk, blk, host }) => movedDisk(disk, blk, host)) };
    } catch (error) {
      for (const { host } of disks) host.thaw();
      throw error;
    }
  }

  async back(move: number): Promise<void> {
    const { leaving, disks } = this.#taken(move);
    try {
      await leaving.back();
    } finally {
      for (const disk of disks.keys()) this.#disks.host(disk).thaw();
    }
  }

  #taken(move: number): Outgoing {
    const outgoing = this.#leaving.get(move);
    if (!outgoing) throw notOnItsWay(move);
    this.#leaving.delete(move);
    return outgoing;
  }

  async commit({ move, link, arrived }: MoveCommitMessage): Promise<number[]> {
    let gone = false;
    link.on('close', () => {
      gone = true;
    });
    link.unref();
    const guests = new Map<number, Guest>();
    try {
      for (const disk of arrived) await this.#leaveGuest(disk, guests);
      if (gone || !this.#leaving.has(move)) {
        throw new BlockError(Errno.ESHUTDOWN, 'Could not move: one of the threads is being stopped');
      }
    } catch (error) {
      link.close();
      for (const { blk, offer } of guests.values()) {
        offer.port.close();
        await closeGuest(blk);
      }
      throw error;
    }
    const { disks, held } = this.#switch(move, guests, link);
    for (const blk of disks.values()) await ended(blk);
    await letGo(held);
    return [...guests.keys()];
  }

  /** Where somebody shows the disk. */
  async #leaveGuest({ disk, identity, optimal }: ArrivedDisk, guests: Map<number, Guest>): Promise<void> {
    const blk = this.#disks.blk(disk);
    if (!this.#servers.some((server) => server.serves(blk))) return;
    const { offer, port } = newOffer();
    const descriptor = descriptorOf(identity, offer.words, port);
    try {
      guests.set(disk, {
        blk: await openGuest(this.#thread.context, descriptor, { name: blk.name, optimal }),
        offer,
      });
    } catch (error) {
      offer.port.close();
      throw error;
    }
  }

  /** The switch, in one go. */
  #switch(move: number, guests: ReadonlyMap<number, Guest>, link: MessagePort): Outgoing {
    const outgoing = this.#taken(move);
    const leaving = [...outgoing.disks].map(([disk, blk]) => {
      const queue = blk.takeQueue();
      const channels = this.#disks.host(disk).depart(queue);
      const guest = guests.get(disk);
      if (guest) channels.push(newChannel(guest.offer));
      return { disk, blk, guest: guest?.blk, queue, channels };
    });
    const message: LinkMessage = new Map(leaving.map(({ disk, channels }) => [disk, channels]));
    link.postMessage(
      message,
      leaving.flatMap(({ channels }) => channels.map(({ port }) => port)),
    );
    link.close();
    for (const { disk, blk, guest, queue } of leaving) {
      // Its counters are the new home's.
      blk.stats = new IoCounters();
      this.#disks.remove(disk, guest);
      if (guest) for (const server of this.#servers) server.rehome(blk, guest);
      for (const request of queue) {
        if (request instanceof ChannelRequest) continue;
        if (guest) guest.submit(request);
        else request.done(-Errno.ESHUTDOWN);
      }
    }
    for (const { name } of outgoing.held) this.#held.take(name);
    outgoing.leaving.end();
    return outgoing;
  }

  // The new home.

  async in({ move, moved, link }: MoveInMessage): Promise<ArrivedDisk[]> {
    for (const { name } of moved.disks) this.#disks.assertRoom(name);
    const opened = await moveIn(this.#thread.context, moved.graph);
    const nodes = [...opened.values()].reverse();
    const held = moved.held.map((name) => opened.get(name)!);
    const blks = new Map<MovedDisk, BlockBackend>();
    try {
      for (const disk of moved.disks) blks.set(disk, await this.#openDisk(disk, opened.get(disk.root)!));
    } catch (error) {
      for (const blk of blks.values()) await ended(blk);
      await letGo(nodes);
      throw error;
    }
    for (const { name, threshold } of moved.graph) {
      if (threshold > 0) this.#held.setThreshold(opened.get(name)!, threshold);
    }
    // Others have them by now.
    await letGo(nodes.filter((node) => !held.includes(node)));
    const disks = new Map([...blks].map(([{ disk, words }, blk]) => [disk, new ChannelHost(blk, words)]));
    const arrival = new Arrival(nodes, held, disks, link);
    this.#arriving.set(move, arrival);
    link.on('message', (message: LinkMessage) => this.#arrived(arrival, message));
    link.unref();
    return [...disks].map(([disk, { blk, identity }]) => {
      return { disk, identity, nodeName: blk.root!.name, optimal: blk.limits.optimal };
    });
  }

  async #openDisk(moved: MovedDisk, node: BlockNode): Promise<BlockBackend> {
    const { name, readOnly, writethrough, owner, allowInactive, perm, shared, counters } = moved;
    const stats = new IoCounters(counters);
    const options = { name, readOnly, writethrough, owner, allowInactive, perm, shared, stats };
    return BlockBackend.open(this.#thread.context, node.name, options);
  }

  #arrived(arrival: Arrival, message: LinkMessage): void {
    const { context } = this.#thread;
    arrival.switched = true;
    for (const node of arrival.held) this.#held.add(node);
    const guests: BlockBackend[] = [];
    for (const [disk, host] of arrival.disks) {
      const guest = this.#disks.guest(disk);
      this.#disks.put(disk, host.blk, host);
      host.arrive(message.get(disk)!);
      if (!guest) continue;
      for (const server of this.#servers) server.rehome(guest, host.blk);
      guests.push(guest);
    }
    arrival.link.close();
    context.run('move', async () => {
      try {
        await activate(arrival.nodes);
        arrival.ended.open();
      } catch (error) {
        arrival.ended.fail(error);
      }
    });
    // Their requests end in the channels that have just come here.
    for (const guest of guests) context.run(`guest '${guest.name}'`, () => closeGuest(guest));
  }

  async done(move: number): Promise<void> {
    const arrival = this.#arriving.get(move);
    if (!arrival) throw notOnItsWay(move);
    try {
      await arrival.ended.promise;
    } finally {
      this.#arriving.delete(move);
    }
  }

  async drop(move: number): Promise<boolean> {
    const arrival = this.#arriving.get(move);
    if (!arrival) return true;
    const message = receiveMessageOnPort(arrival.link);
    if (message && !arrival.switched) this.#arrived(arrival, message.message as LinkMessage);
    if (arrival.switched) return false;
    await this.#giveUp(move, arrival);
    return true;
  }

  async #giveUp(move: number, { disks, held, link }: Arrival): Promise<void> {
    this.#arriving.delete(move);
    link.removeAllListeners();
    link.close();
    for (const host of disks.values()) {
      host.giveUp();
      await ended(host.blk);
    }
    await letGo([...held].reverse());
  }

  /** The thread is to end. What is on its way out stays inactive, since it may be open elsewhere by now. */
  async stop(): Promise<void> {
    while (this.#running.size > 0) await Promise.allSettled([...this.#running]);
    for (const move of [...this.#leaving.keys()]) {
      for (const blk of this.#taken(move).disks.values()) {
        for (const request of blk.takeQueue()) request.done(-Errno.ESHUTDOWN);
      }
    }
    await Promise.all([...this.#arriving.keys()].map((move) => this.drop(move)));
  }
}

function movedDisk(disk: number, blk: BlockBackend, host: ChannelHost): MovedDisk {
  const { name, readOnly, writethrough, owner, allowInactive, perm, shared } = blk;
  const { disk: words, counters } = host.identity;
  const root = blk.root!.name;
  return { disk, name, root, readOnly, writethrough, owner, allowInactive, perm, shared, words, counters };
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

function notOnItsWay(move: number): BlockError {
  return new BlockError(Errno.EBADF, `Could not go on with move ${move}: there is none`);
}
