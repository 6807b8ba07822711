/** Looking at the beginning of an image through a node: one on a server, or a file with its locks. */
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { Iov } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { BlockBackend, type BlockBackendOptions } from '../block/backend.ts';
import { PERM_ALL } from '../block/driver.ts';
import type { NodeOptions } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { Head } from './image-head.ts';
import { needDrivers } from './needed-drivers.ts';
import { type BlockdevOptions, blockdevOf, type HttpSettings, nameOf } from './options.ts';

export class NodeHead extends Head {
  readonly path: string;
  readonly allocated: Bytes | null;
  readonly #blk: BlockBackend;
  /** To be stopped in the end, where it is for this alone. */
  readonly #own: AioContext | undefined;

  private constructor(path: string, blk: BlockBackend, own: AioContext | undefined) {
    super();
    this.path = path;
    this.allocated = allocatedOf(blk);
    this.#blk = blk;
    this.#own = own;
  }

  /** The file below the format in a tree; a tree without one as it is. `how`: as of BlockBackend. */
  static async open(
    context: AioContext,
    tree: BlockdevOptions,
    how: Pick<BlockBackendOptions, 'shared'> = {},
  ): Promise<NodeHead> {
    const { file = tree, 'force-share': forceShare } = tree as {
      readonly file?: unknown;
      readonly 'force-share'?: boolean;
    };
    const options = { ...(file as NodeOptions), 'read-only': true, ...(forceShare ? { 'force-share': true } : {}) };
    await needDrivers(options);
    const blk = await BlockBackend.open(context, options, how);
    return new NodeHead(nameOf(tree), blk, undefined);
  }

  /** The file in a node that is open; what others do with it is theirs. `path`: what it is called. */
  static async ofNode(node: BlockNode, path: string): Promise<NodeHead> {
    const blk = await BlockBackend.open(node.aio, node.name, { readOnly: true, shared: PERM_ALL });
    return new NodeHead(path, blk, undefined);
  }

  /** For a program's thread, which must not be put to sleep: libuv does the waiting. */
  static async openUrl(url: string, http: HttpSettings | undefined): Promise<NodeHead> {
    const tree = blockdevOf(url, { http, format: 'raw' });
    const context = new AioContext(await chooseBackend('pool'), { name: 'head' });
    try {
      const head = await NodeHead.open(context, tree);
      return new NodeHead(head.path, head.#blk, context);
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

/** Filters that do not say what is below them takes, as in QEMU. */
const SILENT: ReadonlySet<string> = new Set(['blkdebug', 'blkverify']);

/** What the node of the file knows of the room that it takes. */
function allocatedOf(blk: BlockBackend): Bytes | null {
  let node = blk.root;
  while (node?.primary && !SILENT.has(node.driver.name)) node = node.primary.node;
  const info = node?.impl.info?.() ?? {};
  const allocated = info instanceof Promise ? undefined : info.allocated;
  return typeof allocated === 'number' ? allocated : null;
}
