/**
 * The servers of one NBD service: one in each of its IOThreads. All accept from the same listening sockets, so that the
 * kernel deals the clients out, and each serves its own.
 */
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type { SocketAddress } from '../aio/backend.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { HandedOver } from '../exports/nbd/export-list.ts';
import type { Disk } from './disk.ts';
import type { IOThread } from './iothread.ts';
import type { ExportMessage, NbdClientEvent, NbdHandOverEvent, NbdStartMessage, NbdStats } from './messages.ts';

interface Member {
  readonly thread: IOThread;
  readonly service: number;
  readonly onCrash: (error: Error) => void;
  /** It accepts no clients: others hand it those of disks that live in its thread. */
  readonly inner: boolean;
  clients: number;
  handshakes: number;
}

export interface MemberEvents {
  /** A client has come ('client') or gone ('disconnect'). */
  readonly onClient: (name: string, peer: string) => void;
  readonly onCrash: (error: Error) => void;
}

/** A disk and how it is exported. */
export interface Shown {
  readonly disk: Disk;
  readonly message: ExportMessage;
}

/** Ways between servers of an export, for each. */
type BitmapPorts = ReadonlyMap<Member, readonly MessagePort[]>;

interface Offered extends Shown {
  /** Who offers it. */
  readonly members: Set<Member>;
}

export class NbdMembers {
  readonly #members: Member[] = [];
  /** By name. */
  readonly #shown = new Map<string, Offered>();
  readonly #events: MemberEvents;
  readonly #atHome: boolean;
  #message: Omit<NbdStartMessage, 'exports'> | undefined;
  #last: NbdStats | undefined;

  /** `atHome`: clients of a disk are served in its thread, whoever greets them, which one thread does. Of {@link add},
   *  not of `start`. */
  constructor(events: MemberEvents, atHome = false) {
    this.#events = events;
    this.#atHome = atHome;
  }

  get clients(): number {
    return this.#members.reduce((sum, { clients }) => sum + clients, 0);
  }

  get handshakes(): number {
    return this.#members.reduce((sum, { handshakes }) => sum + handshakes, 0);
  }

  get threads(): readonly IOThread[] {
    return this.#members.map(({ thread }) => thread);
  }

  /** Starts a server in each thread. The first makes the listening sockets; answers where they are. */
  async start(
    threads: readonly IOThread[],
    shown: readonly Shown[],
    message: Omit<NbdStartMessage, 'exports'>,
  ): Promise<readonly SocketAddress[]> {
    this.#message = message;
    for (const one of shown) this.#shown.set(one.message.name, { ...one, members: new Set() });
    const exports = shown.map((one) => one.message);
    const disks = new Set(shown.map((one) => one.disk));
    const addresses: SocketAddress[] = [];
    for (const thread of threads) {
      const first = this.#members[0];
      const listen = first ? await first.thread.call('nbd-share', { service: first.service }) : message.listen;
      const reply = await showAll(disks, thread, () => thread.call('nbd-start', { ...message, listen, exports }));
      const member = this.#join(thread, reply.service);
      for (const { members } of this.#shown.values()) members.add(member);
      if (!first) addresses.push(...reply.addresses);
    }
    return addresses;
  }

  #join(thread: IOThread, service: number, inner = false): Member {
    const onCrash = (error: Error): void => {
      this.#leave(member);
      // Its clients go with it, and those of other disks do not notice.
      if (!inner) this.#events.onCrash(error);
    };
    const member: Member = { thread, service, onCrash, inner, clients: 0, handshakes: 0 };
    this.#members.push(member);
    thread.on('crash', onCrash);
    thread.hold();
    thread.listen(service, (name, payload) => {
      if (name === 'hand-over') {
        void this.#handOver(member, payload as NbdHandOverEvent);
        return;
      }
      const { peer, clients, handshakes } = payload as NbdClientEvent;
      member.clients = clients;
      member.handshakes = handshakes;
      this.#events.onClient(name, peer);
    });
    return member;
  }

  /** To the server in the home of its disk, until that is another. Where it cannot be had there, the client is left. */
  async #handOver({ thread, service }: Member, { token, fd, handed }: NbdHandOverEvent): Promise<void> {
    let onward: HandedOver | undefined;
    try {
      const home = await this.#shown.get(handed.exportName)?.disk.home.settled();
      const to = this.#members.find((member) => member.inner && member.thread === home);
      if (to) onward = await to.thread.call('nbd-adopt', { service: to.service, fd, handed });
      else if (home === thread) onward = handed;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
    } finally {
      await thread.call('nbd-over', { service, token, handed: onward }).catch(() => undefined);
    }
  }

  /** Who is to offer a disk while its home is `home`: one that is there, then those that accept clients, since they
   *  hand them to it. */
  async #offering(home: IOThread): Promise<Member[]> {
    const outer = this.#members.filter(({ inner }) => !inner);
    if (!this.#atHome || outer.some(({ thread }) => thread === home)) return outer;
    const there = this.#members.find(({ thread }) => thread === home);
    if (there) return [there, ...outer];
    const message = { ...this.#message!, listen: [], exports: [], tls: undefined };
    const { service } = await home.call('nbd-start', message);
    return [this.#join(home, service, true), ...outer];
  }

  /** Servers that were there for disks that are not shown there any more. */
  async #endIdle(): Promise<void> {
    const used = new Set([...this.#shown.values()].flatMap(({ members }) => [...members]));
    for (const member of this.#members.filter((one) => one.inner && !used.has(one))) {
      this.#leave(member);
      await member.thread.call('nbd-stop', { service: member.service, graceMs: 0 });
    }
  }

  /** Offers what is shown of a disk in `to`, where it is about to go. */
  async prepare(disk: Disk, to: IOThread): Promise<void> {
    for (const one of this.#of(disk)) await this.#offer(one, await this.#offering(to));
  }

  /** Has servers in threads that a disk is not in any more, and whose clients have gone, offer it no longer. */
  async settle(disk: Disk): Promise<void> {
    for (const one of this.#of(disk)) {
      const elsewhere = [...one.members].filter(({ inner, thread }) => inner && thread !== disk.iothread);
      for (const member of elsewhere) await this.#withdraw(one, member);
    }
    await this.#endIdle();
  }

  #of(disk: Disk): Offered[] {
    return this.#atHome ? [...this.#shown.values()].filter((one) => one.disk === disk) : [];
  }

  async #withdraw(one: Offered, member: Member): Promise<void> {
    try {
      await this.#removeFrom(member, one, 'safe');
    } catch (error) {
      // Its clients are served there as long as they stay.
      if (!(error instanceof BlockError)) throw error;
    }
  }

  #leave(member: Member): void {
    const index = this.#members.indexOf(member);
    if (index < 0) return;
    this.#members.splice(index, 1);
    for (const { members } of this.#shown.values()) members.delete(member);
    member.thread.unhold();
    member.thread.off('crash', member.onCrash);
    member.thread.listen(member.service, undefined);
  }

  /** Offers a disk in every server, or in none. */
  async add(one: Shown): Promise<void> {
    const { name } = one.message;
    const offered: Offered = { ...one, members: new Set() };
    const isNew = !this.#shown.has(name);
    // A client may come as soon as the first has it.
    if (isNew) this.#shown.set(name, offered);
    let ports: BitmapPorts | undefined;
    try {
      const members = await this.#offering(one.disk.iothread);
      if (this.#atHome) ports = bitmapPorts(one, members);
      await this.#offer(offered, members, ports);
    } catch (error) {
      for (const port of [...(ports?.values() ?? [])].flat()) port.close();
      if (isNew) this.#shown.delete(name);
      await this.#endIdle();
      throw error;
    }
  }

  /** All of `members`, or none of those that do not yet. */
  async #offer(one: Offered, members: readonly Member[], ports?: BitmapPorts): Promise<void> {
    const added: Member[] = [];
    try {
      for (const member of members.filter((each) => !one.members.has(each))) {
        await this.#addTo(member, one, ports?.get(member));
        added.push(member);
      }
    } catch (error) {
      await Promise.allSettled(added.map((member) => this.#removeFrom(member, one, 'hard')));
      throw error;
    }
  }

  /** Takes an export away from every server; where one refuses ('safe': EBUSY), from none. */
  async remove(name: string, mode: 'safe' | 'hard'): Promise<void> {
    const one = this.#shown.get(name);
    if (!one) return;
    const removed: Member[] = [];
    try {
      for (const member of [...one.members].reverse()) {
        await this.#removeFrom(member, one, mode);
        removed.push(member);
      }
    } catch (error) {
      await Promise.allSettled(removed.map((member) => this.#addTo(member, one)));
      throw error;
    }
    this.#shown.delete(name);
    await this.#endIdle();
  }

  async #addTo(member: Member, one: Offered, ports?: readonly MessagePort[]): Promise<void> {
    const { thread, service } = member;
    const entry = { ...one.message, atHome: this.#atHome, bitmapPorts: ports };
    await one.disk.shownIn(thread, () => thread.call('nbd-add', { service, export: entry }, ports));
    one.members.add(member);
  }

  async #removeFrom(member: Member, { disk, message, members }: Offered, mode: 'safe' | 'hard'): Promise<void> {
    const { thread, service, inner } = member;
    await thread.call('nbd-remove', { service, name: message.name, mode });
    members.delete(member);
    if (inner) await disk.home.notShownIn(thread);
  }

  /** Of all servers together; of what they were when they have stopped. */
  async stats(): Promise<NbdStats> {
    if (this.#last) return this.#last;
    return sum(await Promise.all(this.#members.map(({ thread, service }) => thread.call('nbd-stats', { service }))));
  }

  /** Stops all of them; throws what failed first. */
  async stop(graceMs: number): Promise<void> {
    const members = [...this.#members];
    const stopping = members.map(({ thread, service }) => thread.call('nbd-stop', { service, graceMs }));
    const results = await Promise.allSettled(stopping);
    for (const member of members) this.#leave(member);
    this.#last = sum(results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])));
    for (const result of results) {
      // A thread stops its services itself when it is stopped.
      if (result.status === 'rejected' && !isStopped(result.reason)) throw result.reason;
    }
  }

  /** Nothing of it is needed any more. */
  end(): void {
    for (const member of [...this.#members]) this.#leave(member);
  }
}

/** Between the one in the home of a disk whose bitmaps are shown, and each of the others. */
function bitmapPorts({ disk, message }: Shown, members: readonly Member[]): BitmapPorts {
  const ports = new Map<Member, MessagePort[]>();
  const home = members.find(({ thread }) => thread === disk.iothread);
  if (!home || message.bitmaps.length === 0) return ports;
  ports.set(home, []);
  for (const member of members) {
    if (member === home) continue;
    const { port1, port2 } = new MessageChannel();
    ports.get(home)!.push(port1);
    ports.set(member, [port2]);
  }
  return ports;
}

/** Runs `body` while every disk can be shown in `thread` and none of them moves. */
function showAll<T>(disks: ReadonlySet<Disk>, thread: IOThread, body: () => Promise<T>): Promise<T> {
  return [...disks].reduce((inner, disk) => () => disk.shownIn(thread, inner), body)();
}

function isStopped(error: unknown): boolean {
  return error instanceof BlockError && error.errno === Errno.ESHUTDOWN;
}

const NONE: NbdStats = { clients: 0, connections: 0, requests: 0, errors: 0, bytesIn: 0, bytesOut: 0 };

export function sum(all: readonly NbdStats[]): NbdStats {
  const names = Object.keys(NONE) as (keyof NbdStats)[];
  const total = { ...NONE } as { -readonly [name in keyof NbdStats]: number };
  for (const stats of all) for (const name of names) total[name] += stats[name];
  return total;
}
