/** Looking at the beginning of an image on a server. */
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { Iov } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import type { NodeOptions } from '../block/graph.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import { Head } from './image-head.ts';
import { type BlockdevOptions, blockdevOf, type HttpSettings, nameOf } from './options.ts';

export class RemoteHead extends Head {
  readonly path: string;
  readonly allocated = null;
  readonly #blk: BlockBackend;
  /** To be stopped in the end, where it is for this alone. */
  readonly #own: AioContext | undefined;

  private constructor(path: string, blk: BlockBackend, own: AioContext | undefined) {
    super();
    this.path = path;
    this.#blk = blk;
    this.#own = own;
  }

  /** The file below the format in a tree; a tree without one as it is. */
  static async open(context: AioContext, tree: BlockdevOptions): Promise<RemoteHead> {
    const { file = tree } = tree as { readonly file?: unknown };
    const blk = await BlockBackend.open(context, { ...(file as NodeOptions), 'read-only': true });
    return new RemoteHead(nameOf(tree), blk, undefined);
  }

  /** For a program's thread, which must not be put to sleep: libuv does the waiting. */
  static async openUrl(url: string, http: HttpSettings | undefined): Promise<RemoteHead> {
    builtinDrivers();
    const tree = blockdevOf(url, { http, format: 'raw' });
    const context = new AioContext(await chooseBackend('pool'), { name: 'head' });
    try {
      const head = await RemoteHead.open(context, tree);
      return new RemoteHead(head.path, head.#blk, context);
    } catch (error) {
      await context.stop();
      throw error;
    }
  }

  get length(): Bytes {
    return this.#blk.length;
  }

  async read(at: Offset, length: Bytes): Promise<Uint8Array> {
    const bytes = new Uint8Array(new SharedArrayBuffer(Math.max(0, Math.min(length, this.length - at))));
    await this.#blk.read(at, Iov.of(this.#blk.context.backend.memory(bytes)));
    return bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#blk.close();
    await this.#own?.stop();
  }
}
