/** Images that are open together. */
import type { AioContext } from '../aio/context.ts';
import type { BlockBackend } from '../block/backend.ts';
import { type ImageSpec, type OpenHow, openImage } from './open.ts';

/** Closed together, the last opened first. Home thread. */
export class OpenImages implements AsyncDisposable {
  readonly #context: AioContext;
  readonly #open: BlockBackend[] = [];

  constructor(context: AioContext) {
    this.#context = context;
  }

  /** As {@link openImage}. */
  async open(spec: ImageSpec, how: OpenHow = {}): Promise<BlockBackend> {
    return this.add(await openImage(this.#context, spec, how));
  }

  /** One that is open. */
  add(blk: BlockBackend): BlockBackend {
    this.#open.push(blk);
    return blk;
  }

  /** Closes all; throws what failed first: what was written may be lost. */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (let blk = this.#open.pop(); blk !== undefined; blk = this.#open.pop()) {
      await blk.close().catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close().catch(() => undefined);
  }
}
