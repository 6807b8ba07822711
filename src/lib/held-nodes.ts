/** Nodes of an IOThread that are held by name, without a disk on them, until they are deleted. */
import type { SetupThread } from '../aio/iothread-worker.ts';
import { everyStep } from '../base/every-step.ts';
import type { Bytes } from '../base/units.ts';
import { releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import type { ThresholdEvent } from './node-messages.ts';

export class HeldNodes {
  readonly #thread: Pick<SetupThread, 'emit'>;
  readonly #nodes = new Map<string, BlockNode>();

  constructor(thread: Pick<SetupThread, 'emit'>) {
    this.#thread = thread;
  }

  /** In the order in which they came. */
  get all(): BlockNode[] {
    return [...this.#nodes.values()];
  }

  has(name: string): boolean {
    return this.#nodes.has(name);
  }

  add(node: BlockNode): void {
    this.#nodes.set(node.name, node);
  }

  /** Whoever takes it out lets go of it. */
  take(name: string): BlockNode | undefined {
    const node = this.#nodes.get(name);
    this.#nodes.delete(name);
    return node;
  }

  /** Lets go of all: nothing uses them any more. Those that came last may use those from before. */
  async close(): Promise<void> {
    await everyStep(
      ...this.all.reverse().map(
        ({ name }) =>
          () =>
            releaseNode(this.take(name)!),
      ),
    );
  }

  /** Tells once of a write that ends beyond `bytes`; 0 ends it. */
  setThreshold(node: BlockNode, bytes: Bytes): void {
    node.setWriteThreshold(bytes, (end) => {
      this.#thread.emit('threshold', { service: 0, node: node.name, threshold: bytes, end } satisfies ThresholdEvent);
    });
  }
}
