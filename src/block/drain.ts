/**
 * Drain (SEMANTICS D1, D5, D6): no request is in flight on a node or on anything above it, and none may start, until
 * the drained section ends. Beginning is two steps, quiesce (atomic) and wait; ending never waits. Nestable, counted.
 */

import type { AioContext } from '../aio/context.ts';
import { Gate } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import type { BlockNode } from './node.ts';

/** Those who wait for something to go quiet, on this thread. */
let waiting: Gate[] = [];
let drainAlls = 0;

/** Something in flight has ended where a drain is going on: whoever waits looks again. */
export function kickDrain(): void {
  if (waiting.length === 0) return;
  const gates = waiting;
  waiting = [];
  for (const gate of gates) gate.open();
}

/** A drained section; ends once, by `using` or {@link end}. */
export class Drained implements Disposable {
  #nodes: BlockNode[];
  readonly #onEnd: (() => void) | undefined;

  constructor(nodes: BlockNode[], onEnd?: () => void) {
    this.#nodes = nodes;
    this.#onEnd = onEnd;
  }

  end(): void {
    const nodes = this.#nodes;
    if (nodes.length === 0 && !this.#onEnd) return;
    this.#nodes = [];
    for (const node of nodes) unquiesce(node);
    this.#onEnd?.();
  }

  [Symbol.dispose](): void {
    this.end();
  }
}

/** First half of a drain: parents first, then the driver. Nothing new starts from here on. */
export function quiesce(node: BlockNode): void {
  if (node.quiesce++ > 0) return;
  for (const parent of node.parents) parent.drainBegin();
  if (node.live) node.impl.drainBegin?.();
}

/** The driver goes on first, then the parents. One of these may drain again: who counts is not confused by that. */
export function unquiesce(node: BlockNode): void {
  assert(node.quiesce > 0, `node '${node.name}' is not drained`);
  if (--node.quiesce > 0) return;
  if (node.live) node.impl.drainEnd?.();
  for (const parent of [...node.parents]) parent.drainEnd();
}

/** True while a request is in flight on the node or above it. */
export function busy(node: BlockNode): boolean {
  if (node.inFlight > 0 || (node.live && node.impl.drainBusy?.())) return true;
  for (const parent of node.parents) if (parent.drainBusy()) return true;
  return false;
}

/** Waits until `quiet()`; asked again after every end of a request where a drain goes on. */
export async function waitQuiet(quiet: () => boolean): Promise<void> {
  while (!quiet()) {
    const gate = new Gate();
    waiting.push(gate);
    await gate.promise;
  }
}

/** All are quiesced before any is waited for, so that it takes as long as the slowest of them. */
async function goQuiet(nodes: readonly BlockNode[]): Promise<void> {
  for (const node of nodes) quiesce(node);
  await waitQuiet(() => nodes.every((node) => !busy(node)));
}

/** Drains nodes of one context together. Never call it from a request of one of them or above it: it would wait for
 *  itself. */
export async function drain(...nodes: BlockNode[]): Promise<Drained> {
  await goQuiet(nodes);
  return new Drained(nodes);
}

/** Drains every node of `context`. No node may be opened meanwhile. */
export async function drainAll(context: AioContext, nodes: Iterable<BlockNode>): Promise<Drained> {
  const all = [...nodes].filter((node) => node.aio === context);
  drainAlls++;
  await goQuiet(all);
  let ended = false;
  return new Drained(all, () => {
    if (ended) return;
    ended = true;
    drainAlls--;
  });
}

/** True inside a drainAll section of this thread. */
export function inDrainAll(): boolean {
  return drainAlls > 0;
}
