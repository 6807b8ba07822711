/**
 * The connections to one server, and what becomes of requests when they are lost. What must hold:
 *
 * - A request ends once. One whose connection was lost before its answer came is sent again on another: all that NBD
 *   has may be repeated as long as nobody was told that it is done. What was answered is never sent again: by now
 *   somebody else may have written there.
 * - Flush says what it is asked: that every write that had ended is on stable storage. A server that was lost may have
 *   taken with it what it had only cached, and the next one cannot tell. So a flush goes over a connection that is
 *   older than the oldest write that is not stable; where none is left, it fails, now and later (L6).
 * - Who breaks the protocol is not asked again: the requests of that connection fail, later ones get a new connection.
 * - A server that is not what it was (size, features) is not used.
 * - Time is bounded: requests wait as long as `reconnect-delay` says, and are repeated so many times.
 */

import type { BottomHalf } from '../../aio/bottom-half.ts';
import { CoQueue } from '../../aio/co-queue.ts';
import { coSleep, type Sleep } from '../../aio/co-timeout.ts';
import type { AioContext } from '../../aio/context.ts';
import { spawn, WaitOp } from '../../aio/op.ts';
import type { Timer } from '../../aio/timers.ts';
import { BlockError, Errno, errnoOf, ioError } from '../../base/errors.ts';
import { Fifo } from '../../base/fifo.ts';
import { FreeList } from '../../base/free-list.ts';
import type { Memory } from '../../base/memory.ts';
import type { Nanoseconds } from '../../base/units.ts';
import { Command, CommandFlag, TransmissionFlag } from '../../proto/nbd/constants.ts';
import { NbdCommand } from './command.ts';
import { BUSY_BYTES, Connection, type ConnectionOwner } from './connection.ts';
import type { Connected, Connector } from './connector.ts';
import type { ServerInfo } from './handshake.ts';
import type { NbdTarget } from './options.ts';

/** How often a request is sent again: whatever it is that ends the connection, it may be the request. */
const REPEATS_MAX = 8;
/** Requests in flight from which on more connections are made. */
const GROW_AT = 16;
/** Between attempts to reach a server that is gone: doubled each time. */
const BACKOFF_FIRST: Nanoseconds = 10e6;
const BACKOFF_WAITED_FOR: Nanoseconds = 500e6;
const BACKOFF_MAX: Nanoseconds = 16e9;
/** Requests that fail make for an attempt, so often. */
const ON_DEMAND: Nanoseconds = 50e6;
/** How long a good-bye may take. */
const LEAVE_NS: Nanoseconds = 1e9;
/** What a server must still have when it comes back. */
const KEPT_FLAGS =
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_TRIM |
  TransmissionFlag.SEND_WRITE_ZEROES |
  TransmissionFlag.SEND_FAST_ZERO;
/** How a flush ends whose connection was lost: it is for the coroutine to say what that means. */
const LOST = -Errno.ECONNRESET;

export class NbdSession implements ConnectionOwner {
  /** What the server said when the node was opened. */
  readonly server: ServerInfo;
  readonly #aio: AioContext;
  readonly #target: NbdTarget;
  readonly #connector: Connector;
  readonly #readOnly: boolean;
  readonly #quiet: () => void;
  readonly #live: Connection[] = [];
  readonly #memories = new Map<Connection, Memory>();
  readonly #ready = new Fifo<NbdCommand>(64);
  readonly #idle = new FreeList<NbdCommand>();
  readonly #pump: BottomHalf;
  /** A connection has come, or the wait for one is over. */
  readonly #changed = new CoQueue();
  /** Ends the time in which requests wait for a connection. */
  readonly #window: Timer;
  #sleep: Sleep | null = null;
  /** How many connections there shall be. */
  #goal = 1;
  /** More were asked for; not again before the server was lost. */
  #grown = false;
  #connecting = false;
  #backoff: Nanoseconds = 0;
  /** When the last attempt began. */
  #triedAt: Nanoseconds = 0;
  /** Why there is no connection. */
  #why = '';
  #closing = false;
  /** Flushes of the session's own that are going on. */
  settling = 0;
  /** Grows with the beginning, and with the end, of each request that changes what is there. */
  changes = 0;
  /** Writes without FUA that were acknowledged, and how many of them are on stable storage. */
  #acked = 0;
  #stable = 0;
  /** What every flush fails with from now on: some of them may have gone with the server. */
  #failure: BlockError | null = null;

  /** `quiet` is called when `settling` has gone down. */
  constructor(
    aio: AioContext,
    target: NbdTarget,
    connector: Connector,
    first: Connected,
    readOnly: boolean,
    quiet: () => void,
  ) {
    this.#quiet = quiet;
    this.#aio = aio;
    this.#target = target;
    this.#connector = connector;
    this.#readOnly = readOnly;
    this.server = first.server;
    this.#pump = aio.bottomHalf(() => this.#send(), 'nbd requests');
    this.#window = aio.timer(() => this.#giveUp(), 'nbd reconnect-delay');
    this.#add(first);
  }

  get connections(): number {
    return this.#live.length;
  }

  // Requests.

  /** One to fill in and {@link submit}; it comes back by itself, unless it is `kept`. */
  take(): NbdCommand {
    return this.#idle.take() ?? new NbdCommand();
  }

  /** Its op ends later, never inside. */
  submit(command: NbdCommand): void {
    if (this.#live.length === 0 && !this.#window.armed) {
      // For the next one: the server may be there again.
      if (this.#aio.now() >= this.#triedAt + ON_DEMAND) this.#sleep?.wake();
      const op = command.op!;
      this.#release(command);
      this.#aio.completeLater(op, -Errno.EIO);
      return;
    }
    if (isChange(command.type)) this.changes++;
    this.#ready.push(command);
    this.#pump.schedule();
  }

  /** Submits and waits: the result. `look` is called with the answer before the command is used again. */
  async run(
    type: number,
    at: number,
    length: number,
    flags: number,
    look?: (command: NbdCommand) => void,
  ): Promise<number> {
    const command = this.#filled(type, at, length, flags);
    const op = new WaitOp();
    command.op = op;
    const ended = op.wait();
    this.submit(command);
    const result = await ended;
    look?.(command);
    this.giveBack(command);
    return result;
  }

  #filled(type: number, at: number, length: number, flags: number): NbdCommand {
    const command = this.take();
    command.kept = true;
    command.type = type;
    command.at = at;
    command.length = length;
    command.flags = flags;
    return command;
  }

  /** After the end of one that was kept. */
  giveBack(command: NbdCommand): void {
    command.kept = false;
    this.#release(command);
  }

  /** Every write that has ended is on stable storage. Throws BlockError. */
  async flush(): Promise<void> {
    if ((this.server.flags & TransmissionFlag.SEND_FLUSH) === 0) return;
    for (let losses = 0; ; ) {
      if (this.#failure !== null) throw this.#failure;
      const acked = this.#acked;
      const connection = this.#live.find(({ born }) => born <= this.#stable || !this.#target.losesCache);
      if (connection === undefined) {
        if (this.#live.length > 0) this.#failure = this.#failed('flush', Errno.EIO, LOST_TEXT);
        else if (this.#window.armed) await this.#changed.wait();
        else throw this.#failed('flush', Errno.EIO, this.#why);
        continue;
      }
      const result = await this.#flushOver(connection);
      if (result === LOST && ++losses <= REPEATS_MAX) continue;
      if (result === LOST) throw this.#failed('flush', Errno.EIO, this.#why);
      if (result < 0) throw this.#failed('flush', result);
      // May interleave: another flush, that began later, has ended before.
      this.#stable = Math.max(this.#stable, acked);
      return;
    }
  }

  /**
   * A connection has come beside older ones, and is too young for what is not stable. They answer for that now, as long
   * as they are there; else one loss after the other would leave none that can.
   */
  async #settle(): Promise<void> {
    this.settling++;
    try {
      await this.flush();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      // Nobody has asked, so nobody is told now: whoever asks next.
      if (this.#live.length > 0) this.#failure ??= error;
    } finally {
      this.settling--;
      this.#quiet();
    }
  }

  async #flushOver(connection: Connection): Promise<number> {
    const command = this.#filled(Command.FLUSH, 0, 0, 0);
    const op = new WaitOp();
    command.op = op;
    const ended = op.wait();
    connection.push(command);
    this.#pump.schedule();
    const result = await ended;
    this.giveBack(command);
    return result;
  }

  #failed(what: string, errno: number, why?: string): BlockError {
    const { name } = this.#target;
    const where = { path: name };
    if (why === undefined) return ioError(errno, `Could not ${what} '${name}'`, where);
    return new BlockError(errno, `Could not ${what} '${name}': ${why}`, { where });
  }

  #send(): void {
    for (const connection of this.#live) if (connection.hasOwn && connection.takes) connection.sendFrom(this.#ready);
    while (this.#ready.length > 0) {
      const connection = this.#pick();
      if (connection === null) break;
      connection.sendFrom(this.#ready);
    }
    if (!this.#grown && this.#live.length === 1 && this.#wantsMore()) {
      this.#grown = true;
      this.#goal = this.#target.connections;
      this.#connect();
    }
  }

  /** The first that is not busy, so that requests leave and answers come in large batches; else the least busy. */
  #pick(): Connection | null {
    let best: Connection | null = null;
    for (let i = 0; i < this.#live.length; i++) {
      const connection = this.#live[i]!;
      if (!connection.takes) continue;
      if (connection.bytesInFlight < BUSY_BYTES) return connection;
      if (best === null || connection.bytesInFlight < best.bytesInFlight) best = connection;
    }
    return best;
  }

  #wantsMore(): boolean {
    if (this.#target.connections === 1 || (this.server.flags & TransmissionFlag.CAN_MULTI_CONN) === 0) return false;
    return this.#ready.length > 0 || this.#live[0]!.inFlight >= GROW_AT;
  }

  #release(command: NbdCommand): void {
    if (command.kept) return;
    command.op = null;
    command.iov = null;
    command.repeats = 0;
    this.#idle.give(command);
  }

  #end(command: NbdCommand, result: number): void {
    const op = command.op!;
    this.#release(command);
    op.complete(result);
  }

  // What the connections say.

  answered(connection: Connection, command: NbdCommand): void {
    const { result, type } = command;
    this.#backoff = 0;
    if (isChange(type)) {
      this.changes++;
      if (result >= 0 && (command.flags & CommandFlag.FUA) === 0) this.#acked++;
    }
    if (this.#ready.length > 0 || connection.hasOwn) this.#pump.schedule();
    this.#end(command, result);
  }

  ready(): void {
    if (this.#ready.length > 0 || this.#live.some((connection) => connection.hasOwn)) this.#pump.schedule();
  }

  lost(connection: Connection, commands: NbdCommand[]): void {
    const index = this.#live.indexOf(connection);
    if (index >= 0) this.#live.splice(index, 1);
    spawn(this.#bury(connection));
    if (this.#closing) {
      for (const command of commands) if (command.type === Command.FLUSH) this.#end(command, LOST);
      return;
    }
    this.#why = `the connection was lost: ${connection.reason}`;
    if (this.#live.length === 0) {
      this.#grown = false;
      this.#openWindow();
    }
    const again: NbdCommand[] = [];
    const failed: NbdCommand[] = [];
    for (const command of commands) {
      const repeat = !connection.violated && command.type !== Command.FLUSH && command.repeats++ < REPEATS_MAX;
      (repeat ? again : failed).push(command);
    }
    // Before those that were never sent, in their own order.
    for (const command of again.reverse()) this.#ready.unshift(command);
    for (const command of failed) this.#end(command, command.type === Command.FLUSH ? LOST : -Errno.EIO);
    if (this.#live.length === 0 && !this.#window.armed) this.#giveUp();
    this.#pump.schedule();
    this.#connect();
  }

  async #bury(connection: Connection): Promise<void> {
    await connection.release();
    const memory = this.#memories.get(connection)!;
    this.#memories.delete(connection);
    this.#connector.recycle(memory);
    this.#changed.wakeAll();
  }

  // Coming back.

  #openWindow(): void {
    if (this.#target.reconnectNs > 0) this.#window.armIn(this.#target.reconnectNs);
  }

  /** The server is not waited for any longer. */
  #giveUp(): void {
    for (let left = this.#ready.length; left > 0; left--) this.#end(this.#ready.shift()!, -Errno.EIO);
    this.#changed.wakeAll();
  }

  #add({ socket, memory, server }: Connected): void {
    const connection = new Connection(socket, memory, server, this.#acked, this);
    this.#memories.set(connection, memory);
    const older = this.#live.length > 0;
    this.#live.push(connection);
    this.#window.cancel();
    connection.start();
    if (older && this.#acked > this.#stable) spawn(this.#settle());
    this.#pump.schedule();
    this.#changed.wakeAll();
  }

  /** Makes connections until there are as many as there shall be; in the background. */
  #connect(): void {
    if (this.#connecting || this.#closing || this.#live.length >= this.#goal) return;
    this.#connecting = true;
    spawn(this.#connectAll());
  }

  async #connectAll(): Promise<void> {
    while (!this.#closing && this.#live.length < this.#goal) {
      if (this.#live.length === 0 && this.#backoff > 0) await this.#pause();
      if (this.#closing) break;
      this.#backoff = Math.max(BACKOFF_FIRST, this.#backoff * 2);
      this.#triedAt = this.#aio.now();
      try {
        const connected = await this.#connector.connect();
        const misfit = this.#closing ? 'closed' : this.#misfit(connected.server);
        if (misfit === undefined) {
          this.#add(connected);
          continue;
        }
        await connected.socket.close();
        this.#connector.recycle(connected.memory);
        throw new BlockError(Errno.EPROTO, misfit);
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        this.#why = `there is no connection: ${error.message}`;
        // The server does not want more than these.
        if (this.#live.length > 0) this.#goal = Math.max(1, this.#live.length);
      }
    }
    this.#connecting = false;
    // One may have been lost since the loop looked.
    this.#connect();
  }

  /** Between attempts; somebody who wants to submit a request ends it. */
  async #pause(): Promise<void> {
    const most = this.#window.armed ? BACKOFF_WAITED_FOR : BACKOFF_MAX;
    this.#backoff = Math.min(this.#backoff, most);
    this.#sleep = coSleep(this.#aio, this.#backoff);
    await this.#sleep.promise;
    this.#sleep = null;
  }

  /** Why a server cannot stand in for the one that the node was opened with. */
  #misfit(server: ServerInfo): string | undefined {
    const was = this.server;
    if (server.size !== was.size) return `the export has ${server.size} bytes now, and had ${was.size}`;
    const missing = was.flags & KEPT_FLAGS & ~server.flags;
    if (missing !== 0) return `the export cannot do what it could (flags 0x${missing.toString(16)})`;
    if (!this.#readOnly && (server.flags & TransmissionFlag.READ_ONLY) !== 0) return 'the export is read-only now';
    if (server.minBlock > was.minBlock || server.maxPayload < was.maxPayload) return 'the export has other block sizes';
    const less = (was.extended && !server.extended) || (was.contextId >= 0 && server.contextId < 0);
    if (less) return 'the server speaks less of the protocol than before';
    const single = (server.flags & TransmissionFlag.CAN_MULTI_CONN) === 0;
    return this.#live.length > 0 && single ? 'the export takes one connection only' : undefined;
  }

  /** Ends all connections; no request is in flight. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#window.cancel();
    this.#connector.close();
    this.#sleep?.wake();
    for (const connection of [...this.#live]) connection.disconnect(this.#filled(Command.DISC, 0, 0, 0));
    const patience = this.#aio.timer(() => {
      for (const connection of [...this.#live]) connection.close('closed');
    }, 'nbd good-bye');
    patience.armIn(LEAVE_NS);
    while (this.#memories.size > 0) await this.#changed.wait();
    patience.cancel();
    this.#pump.delete();
  }
}

function isChange(type: number): boolean {
  return type === Command.WRITE || type === Command.WRITE_ZEROES || type === Command.TRIM;
}

const LOST_TEXT = 'the server was lost, and writes that it had not flushed may be lost with it';

/** For opening: connects, and tries again for as long as `open-timeout` says. Throws BlockError. */
export async function firstConnection(aio: AioContext, target: NbdTarget, connector: Connector): Promise<Connected> {
  const deadline = aio.now() + target.openNs;
  for (let pause = BACKOFF_FIRST; ; pause = Math.min(2 * pause, BACKOFF_WAITED_FOR)) {
    try {
      return await connector.connect();
    } catch (error) {
      const left = deadline - aio.now();
      if (left <= 0) {
        const why = error instanceof Error ? error.message : String(error);
        throw new BlockError(errnoOf(error), `Could not open '${target.name}': ${why}`, {
          where: { path: target.name, op: 'open' },
          cause: error,
        });
      }
      await coSleep(aio, Math.min(pause, left)).promise;
    }
  }
}
