/** An edge of the graph: what a driver holds of its child node, and what the child node knows of its parent. */

import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { copyUp, copyUpTo, heldLength, layerNumber } from './copy-up.ts';
import { busy, quiesce, unquiesce } from './drain.ts';
import {
  type Child,
  type ChildRequest,
  type ChildRole,
  type DebugEvent,
  type Limits,
  type MaybePromise,
  PERM_ALL,
  Perm,
  type PointInTime,
} from './driver.ts';
import { discardNode, zeroNode } from './emulate.ts';
import { readNow, start } from './fast.ts';
import { flushNode } from './flush.ts';
import { readNode, truncateNode, writeNode } from './io.ts';
import { type BlockNode, graphBelow, type NodeParent } from './node.ts';
import { BlockRequest, RequestKind } from './request.ts';
import { BlockStatus, nodeStatus } from './status.ts';

export class BlockChild implements Child, NodeParent {
  readonly name: string;
  readonly role: ChildRole;
  readonly parent: BlockNode;
  node: BlockNode;
  perm = 0;
  shared = PERM_ALL;
  /** How often the child node has begun a drain without ending it: an end may come after the next beginning. */
  quiesced = 0;

  /** @internal Use attachChild() of graph.ts. */
  constructor(parent: BlockNode, name: string, role: ChildRole, node: BlockNode) {
    this.parent = parent;
    this.name = name;
    this.role = role;
    this.node = node;
  }

  get describe(): string {
    return `node '${this.parent.name}' as '${this.name}'`;
  }

  get length(): Bytes {
    return this.node.length;
  }

  get limits(): Limits {
    return this.node.limits;
  }

  get nodeName(): string {
    return this.node.name;
  }

  get compressedUnit(): Bytes {
    const { impl, limits } = this.node;
    return impl.writeCompressed ? limits.zeroAlignment || 1 : 0;
  }

  /** True when writes may go through this edge, and so flushes must. */
  get writes(): boolean {
    return (this.perm & (Perm.WRITE | Perm.WRITE_UNCHANGED)) !== 0;
  }

  get mayGrow(): boolean {
    return (this.perm & Perm.RESIZE) !== 0;
  }

  readNow(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean {
    return readNow(this.node, at, memory, offset, length);
  }

  read(at: Offset, iov: Iov): Promise<void> {
    return readNode(this.node, at, iov, 0);
  }

  held(at: Offset, want: Bytes): MaybePromise<number> {
    return heldLength(this.node, at, want);
  }

  copyUp(at: Offset, length: Bytes, last?: number): Promise<void> {
    this.#assertWrites('copy up in');
    return last === undefined ? copyUp(this.node, at, length) : copyUpTo(this.node, at, length, last);
  }

  status(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void> {
    return nodeStatus(this.node, at, want, out);
  }

  zeroes(at: Offset, want: Bytes): MaybePromise<number> {
    const status = new BlockStatus();
    const answer = (): number => (status.zero ? status.length : -status.length);
    const pending = nodeStatus(this.node, at, want, status);
    return pending === undefined ? answer() : pending.then(answer);
  }

  get pointInTime(): PointInTime | undefined {
    return this.node.impl.pointInTime;
  }

  isOver(other: Child): boolean {
    return graphBelow(this.node).has((other as BlockChild).node);
  }

  layer(nodeName: string): number {
    return layerNumber(this.node, ({ name }) => name === nodeName);
  }

  write(at: Offset, iov: Iov, flags = 0): Promise<void> {
    this.#assertWrites('write to');
    return writeNode(this.node, at, iov, flags, this.mayGrow);
  }

  writeZeroes(at: Offset, length: Bytes, flags = 0): Promise<void> {
    this.#assertWrites('write zeroes to');
    return zeroNode(this.node, at, length, flags, this.mayGrow);
  }

  discard(at: Offset, length: Bytes): Promise<void> {
    this.#assertWrites('discard in');
    return discardNode(this.node, at, length);
  }

  flush(): Promise<void> {
    return flushNode(this.node);
  }

  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full' = 'off'): Promise<void> {
    if (!this.mayGrow) throw this.#refusal('resize');
    await truncateNode(this.node, length, prealloc);
  }

  point(event: DebugEvent): MaybePromise<void> {
    return this.node.impl.debugEvent?.(event);
  }

  drainBegin(): void {
    if (this.quiesced++ === 0) quiesce(this.parent);
  }

  drainEnd(): void {
    assert(this.quiesced > 0, `${this.describe} has not begun a drain`);
    if (--this.quiesced === 0) unquiesce(this.parent);
  }

  drainBusy(): boolean {
    return busy(this.parent);
  }

  resized(): void {
    if (this.role !== 'cow' && this.role !== 'target') this.parent.resized();
  }

  /** @internal A request that is filled but for where it is. */
  begin(request: BlockRequest, kind: number, at: Offset): void {
    if (kind === RequestKind.WRITE) this.#assertWrites('write to');
    request.kind = kind;
    request.at = at;
    request.length = request.iov.length;
    request.failure = null;
    start(request, this.node);
  }

  #assertWrites(what: string): void {
    if (!this.writes) throw this.#refusal(what);
  }

  #refusal(what: string): BlockError {
    return new BlockError(Errno.EPERM, `Could not ${what} node '${this.node.name}': ${this.describe} may not`);
  }
}

/** See ChildRequest. */
export class DriverRequest extends BlockRequest implements ChildRequest {
  readonly #done: (error: number) => void;

  constructor(done: (error: number) => void) {
    super();
    this.#done = done;
  }

  read(child: Child, at: Offset): void {
    (child as BlockChild).begin(this, RequestKind.READ, at);
  }

  write(child: Child, at: Offset): void {
    (child as BlockChild).begin(this, RequestKind.WRITE, at);
  }

  done(error: number): void {
    this.#done(error);
  }
}
