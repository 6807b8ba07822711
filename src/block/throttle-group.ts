/**
 * Throttle groups: what several nodes may do together, in one context or in several. A node's requests go through in
 * their order; the nodes of one context take turns, contexts share the rates (throttle-state.ts).
 */
import type { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import type { Timer } from '../aio/timers.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Fifo } from '../base/fifo.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';
import type { MaybePromise, SharedThrottle, ThrottleMember } from './driver.ts';
import { checkLimits, type ThrottleLimits } from './throttle-limits.ts';
import { ThrottleState } from './throttle-state.ts';

/** Whoever waits looks so often at least: the limits may have been changed by another thread. */
const LOOK_NS: Nanoseconds = 100_000_000;

const groups = new Map<string, ThrottleGroup>();

/**
 * By name, ENOENT where there is none in this thread; or one that others have, which is known here as long as nodes of
 * this thread are in it: EEXIST where there is another of its name.
 */
export function throttleGroup(which: string | SharedThrottle): ThrottleGroup {
  const { name, memory } = typeof which === 'string' ? { name: which, memory: undefined } : which;
  const group = groups.get(name);
  if (group && (memory === undefined || group.isIn(memory))) return group;
  if (memory !== undefined) return ThrottleGroup.attach(name, memory, true);
  throw new BlockError(Errno.ENOENT, `Could not find throttle group '${name}'`);
}

/** Every group of this thread. */
export function throttleGroups(): readonly ThrottleGroup[] {
  return [...groups.values()];
}

interface Waiting {
  readonly length: Bytes;
  readonly gate: Gate;
}

/** One direction of the members in one context. */
class Line {
  readonly #state: ThrottleState;
  readonly #context: AioContext;
  readonly #write: boolean;
  readonly #timer: Timer;
  readonly #members: Member[];
  #turn = 0;
  waiting = 0;

  constructor(state: ThrottleState, context: AioContext, write: boolean, members: Member[]) {
    this.#state = state;
    this.#context = context;
    this.#write = write;
    this.#members = members;
    this.#timer = context.timer(() => this.run(), 'throttle');
  }

  take(member: Member, length: Bytes): MaybePromise<void> {
    if (this.waiting === 0 && this.#state.take(this.#write, length, this.#context.now()) === 0) return undefined;
    const gate = new Gate();
    member.queue(this.#write).push({ length, gate });
    this.waiting++;
    if (!this.#timer.armed) this.run();
    return gate.promise;
  }

  /** Lets through what may go. Each member that waits has its turn. */
  run(): void {
    this.#timer.cancel();
    while (this.waiting > 0) {
      const queue = this.#next();
      const wait = this.#state.take(this.#write, queue.peek()!.length, this.#context.now());
      if (wait > 0) {
        this.#timer.armIn(Math.min(wait, LOOK_NS));
        return;
      }
      this.#turn++;
      this.waiting--;
      queue.shift()!.gate.open();
    }
  }

  #next(): Fifo<Waiting> {
    for (; ; this.#turn++) {
      const queue = this.#members[this.#turn % this.#members.length]!.queue(this.#write);
      if (queue.length > 0) return queue;
    }
  }
}

/** The members of a group in one context. */
class Hall {
  readonly members: Member[] = [];
  readonly read: Line;
  readonly write: Line;

  constructor(state: ThrottleState, context: AioContext) {
    this.read = new Line(state, context, false, this.members);
    this.write = new Line(state, context, true, this.members);
  }
}

class Member implements ThrottleMember {
  readonly #state: ThrottleState;
  readonly #hall: Hall;
  readonly #onLeave: () => void;
  readonly #reads = new Fifo<Waiting>();
  readonly #writes = new Fifo<Waiting>();
  #drained = false;

  constructor(state: ThrottleState, hall: Hall, onLeave: () => void) {
    this.#state = state;
    this.#hall = hall;
    this.#onLeave = onLeave;
    hall.members.push(this);
  }

  queue(write: boolean): Fifo<Waiting> {
    return write ? this.#writes : this.#reads;
  }

  limits(write: boolean): boolean {
    return this.#state.limited(write);
  }

  take(write: boolean, length: Bytes): MaybePromise<void> {
    if (this.#drained || !this.#state.limited(write)) return undefined;
    return (write ? this.#hall.write : this.#hall.read).take(this, length);
  }

  /** What waits goes through, and what comes does not wait. */
  drain(drained: boolean): void {
    this.#drained = drained;
    if (!drained) return;
    for (const write of [false, true]) {
      const queue = this.queue(write);
      const line = write ? this.#hall.write : this.#hall.read;
      for (let waiting = queue.shift(); waiting; waiting = queue.shift()) {
        line.waiting--;
        waiting.gate.open();
      }
    }
  }

  leave(): void {
    this.drain(true);
    const { members } = this.#hall;
    const index = members.indexOf(this);
    if (index < 0) return;
    members.splice(index, 1);
    this.#onLeave();
  }
}

export class ThrottleGroup {
  readonly name: string;
  readonly #state: ThrottleState;
  readonly #halls = new Map<AioContext, Hall>();
  readonly #whileUsed: boolean;
  #users = 0;

  private constructor(name: string, state: ThrottleState, whileUsed: boolean) {
    this.name = name;
    this.#state = state;
    this.#whileUsed = whileUsed;
    groups.set(name, this);
  }

  /** EEXIST, EINVAL. */
  static create(name: string, limits: ThrottleLimits = {}): ThrottleGroup {
    checkLimits(limits);
    assertFree(name);
    const state = new ThrottleState();
    state.limits = limits;
    return new ThrottleGroup(name, state, false);
  }

  /** The group of another thread, by its {@link memory}. `whileUsed`: until the last node of this thread has left it.
   *  EEXIST. */
  static attach(name: string, memory: SharedArrayBuffer, whileUsed = false): ThrottleGroup {
    assertFree(name);
    return new ThrottleGroup(name, new ThrottleState(memory), whileUsed);
  }

  /** What {@link attach} needs in another thread. */
  get memory(): SharedArrayBuffer {
    return this.#state.memory;
  }

  isIn(memory: SharedArrayBuffer): boolean {
    return this.#state.isIn(memory);
  }

  get limits(): ThrottleLimits {
    return this.#state.limits;
  }

  /** Holds for what waits already, too. EINVAL changes nothing. */
  setLimits(limits: ThrottleLimits): void {
    checkLimits(limits);
    this.#state.limits = limits;
    for (const { read, write } of this.#halls.values()) {
      read.run();
      write.run();
    }
  }

  /** Nodes of all threads that are in it. */
  get users(): number {
    return this.#state.users;
  }

  /** @internal By a node's driver, through its OpenContext. */
  join(context: AioContext): ThrottleMember {
    let hall = this.#halls.get(context);
    if (!hall) {
      hall = new Hall(this.#state, context);
      this.#halls.set(context, hall);
    }
    this.#users++;
    this.#state.addUsers(1);
    return new Member(this.#state, hall, () => {
      this.#state.addUsers(-1);
      if (--this.#users === 0 && this.#whileUsed) groups.delete(this.name);
    });
  }

  /** EBUSY while nodes are in it. */
  delete(): void {
    const { users } = this;
    if (users > 0) {
      throw new BlockError(Errno.EBUSY, `Could not delete throttle group '${this.name}': ${users} nodes use it`);
    }
    groups.delete(this.name);
  }
}

function assertFree(name: string): void {
  if (!groups.has(name)) return;
  throw new BlockError(Errno.EEXIST, `Could not create throttle group '${name}': there is one of this name`);
}
