/**
 * Requests in flight on a node (SEMANTICS R1, R2): an intrusive list, so that beginning and ending a request allocates
 * nothing. Two overlapping requests of which at least one is serialising are ordered: the later one waits.
 */

import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { kickDrain } from './drain.ts';
import type { BlockNode } from './node.ts';

/** Somebody who waits until the extents that are in use now are not any more. */
class Grace {
  left = 0;
  readonly gate = new Gate();
}

/** One request on one node. Reused by its owner; at rest when `node` is null. */
export class Tracked {
  node: BlockNode | null = null;
  prev: Tracked | null = null;
  next: Tracked | null = null;
  /** RequestKind, or TRUNCATE below. */
  kind = 0;
  at = 0;
  length = 0;
  serialising = false;
  /** What others must not touch when serialising: the range rounded out to the serialising granularity. */
  overlapAt = 0;
  overlapEnd = 0;
  /** The request this one waits for; such a one checks again before it goes on, so nobody has to wait for it. */
  waitingFor: Tracked | null = null;
  /** How many extents that `map` gave are in use by this request. */
  holds = 0;
  waiters: Gate[] | null = null;
  graces: Grace[] | null = null;
}

export const TRACKED_TRUNCATE = 16;

/** Puts `tracked` on the node's list and counts it in flight. */
export function begin(node: BlockNode, tracked: Tracked, kind: number, at: number, length: number): void {
  tracked.node = node;
  tracked.kind = kind;
  tracked.at = at;
  tracked.length = length;
  tracked.overlapAt = at;
  tracked.overlapEnd = at + length;
  const tail = node.lastTracked;
  tracked.prev = tail;
  if (tail === null) node.firstTracked = tracked;
  else tail.next = tracked;
  node.lastTracked = tracked;
  node.inFlight++;
}

/** Takes it off the list, wakes who waits for it, and lets a drain look again. */
export function end(tracked: Tracked): void {
  const node = tracked.node;
  if (node === null) return;
  if (tracked.prev === null) node.firstTracked = tracked.next;
  else tracked.prev.next = tracked.next;
  if (tracked.next === null) node.lastTracked = tracked.prev;
  else tracked.next.prev = tracked.prev;
  tracked.prev = null;
  tracked.next = null;
  tracked.node = null;
  if (tracked.serialising) {
    tracked.serialising = false;
    node.serialising--;
  }
  tracked.holds = 0;
  if (tracked.graces !== null) releaseGraces(tracked);
  if (tracked.waiters !== null) wakeWaiters(tracked);
  node.inFlight--;
  if (node.quiesce !== 0) kickDrain();
}

/** From now on every overlapping request is ordered against this one, at `unit` granularity. */
export function serialise(tracked: Tracked, unit: number): void {
  const node = tracked.node!;
  tracked.overlapAt = tracked.at - (tracked.at % unit);
  const over = (tracked.at + tracked.length) % unit;
  tracked.overlapEnd = tracked.at + tracked.length + (over === 0 ? 0 : unit - over);
  if (tracked.serialising) return;
  tracked.serialising = true;
  node.serialising++;
}

/** Waits until nothing in flight conflicts. With `noWait`: EBUSY instead. */
export async function waitConflicts(self: Tracked, noWait = false): Promise<void> {
  for (let other = conflict(self); other !== null; other = conflict(self)) {
    if (noWait) throw new BlockError(Errno.EBUSY, 'Could not start the request: an overlapping one is in flight');
    self.waitingFor = other;
    const gate = new Gate();
    other.waiters ??= [];
    other.waiters.push(gate);
    await gate.promise;
    self.waitingFor = null;
  }
}

/** A request that `self` has to wait for, or null. One that waits itself is passed over: it sees `self` on waking. */
export function conflict(self: Tracked): Tracked | null {
  const node = self.node!;
  if (node.serialising === 0) return null;
  for (let other = node.firstTracked; other !== null; other = other.next) {
    if (other === self || other.waitingFor !== null || !(self.serialising || other.serialising)) continue;
    if (self.overlapAt < other.overlapEnd && other.overlapAt < self.overlapEnd) return other;
  }
  return null;
}

/** An extent that `map` gave, and that its mapping has counted, went out of use. */
export function unhold(tracked: Tracked): void {
  if (--tracked.holds === 0 && tracked.graces !== null) releaseGraces(tracked);
}

/** See OpenContext.grace. */
export function grace(node: BlockNode): Promise<void> | undefined {
  let wait: Grace | undefined;
  for (let tracked = node.firstTracked; tracked !== null; tracked = tracked.next) {
    if (tracked.holds === 0) continue;
    wait ??= new Grace();
    wait.left++;
    tracked.graces ??= [];
    tracked.graces.push(wait);
  }
  return wait?.gate.promise;
}

function releaseGraces(tracked: Tracked): void {
  const graces = tracked.graces!;
  tracked.graces = null;
  for (const wait of graces) if (--wait.left === 0) wait.gate.open();
}

function wakeWaiters(tracked: Tracked): void {
  const waiters = tracked.waiters!;
  tracked.waiters = null;
  for (const gate of waiters) gate.open();
}
