/** Node's own streams (TLS) beside the ring: libuv drives them, and their operations end in the ring's dispatch. */
import type { Socket } from 'node:net';
import { Errno } from '../../base/errors.ts';
import type { AioSocket, LoopHost } from '../backend.ts';
import { type AioOp, markResumed } from '../op.ts';
import { type OpOwner, OpTable } from '../op-table.ts';
import type { PoolResource } from '../pool/loop.ts';
import { type StreamLoop, socketOverStream } from '../pool/socket.ts';

export class RingStreams implements StreamLoop {
  readonly resources = new Set<PoolResource>();
  readonly #host: LoopHost;
  readonly #ops = new OpTable();
  #ending = false;

  constructor(host: LoopHost) {
    this.#host = host;
  }

  adopt(stream: Socket): AioSocket {
    return socketOverStream(this, stream);
  }

  begin(op: AioOp, owner: OpOwner): boolean {
    this.#ops.add(op, owner);
    // What a stream is asked for goes on in ticks of Node's: the loop lets them run before its next turn.
    markResumed();
    this.#host.stats.operations++;
    if (!this.#ending) return true;
    this.end(op, -Errno.ECANCELED);
    return false;
  }

  end(op: AioOp, result: number): void {
    this.#ops.remove(op);
    this.#host.completeLater(op, result);
  }

  endNow(op: AioOp, result: number): void {
    this.#ops.remove(op);
    op.complete(result);
  }

  later(op: AioOp): void {
    this.#host.completeLater(op, 0);
  }

  /** False when `op` is none of a stream's. */
  cancel(op: AioOp): boolean {
    const owner = this.#ops.ownerOf(op);
    owner?.cancel(op);
    return owner !== undefined;
  }

  /** Takes no more operations, and ends those that may wait for ever. */
  endAll(): void {
    this.#ending = true;
    for (const resource of [...this.resources]) resource.endWaiting();
  }

  async close(): Promise<void> {
    await Promise.all([...this.resources].map((resource) => resource.close()));
  }
}
