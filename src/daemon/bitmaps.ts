/** Dirty bitmaps of nodes, in the words that clients know. */
import type { BitmapInfo } from '../lib/bitmap-messages.ts';
import type { IOThread } from '../lib/iothread.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Nodes } from './nodes.ts';

type BitmapAdd = Qapi<'BlockDirtyBitmapAdd'>;
type BitmapMerge = Qapi<'BlockDirtyBitmapMerge'>;
type Bitmap = Qapi<'BlockDirtyBitmap'>;

const GRANULARITY_MIN = 512;

/** What nodes have, by their names. */
export type KnownBitmaps = ReadonlyMap<string, readonly BitmapInfo[]>;

export class Bitmaps {
  readonly #nodes: Nodes;

  constructor(nodes: Nodes) {
    this.#nodes = nodes;
  }

  async add(args: BitmapAdd): Promise<void> {
    const { node, name, granularity, persistent = false, disabled = false } = args;
    await this.assertNew(args);
    await this.#thread(node).call('bitmap-add', { disk: node, name, granularity, persistent, disabled });
  }

  /** What those of `nodes` that are there have, asked for at the same time: for checks that follow each other. */
  async known(nodes: Iterable<string>): Promise<KnownBitmaps> {
    const there = [...new Set(nodes)].filter((node) => this.#nodes.find(node));
    return new Map(await Promise.all(there.map(async (node) => [node, await this.#list(node)] as const)));
  }

  async #list(node: string, known?: KnownBitmaps): Promise<readonly BitmapInfo[]> {
    return known?.get(node) ?? this.#thread(node).call('bitmap-list', { disk: node });
  }

  /** Throws where there can be no such bitmap. */
  async assertNew({ node, name, granularity }: BitmapAdd, known?: KnownBitmaps): Promise<void> {
    if (name === '') throw new QmpError('Bitmap name cannot be empty');
    if (granularity !== undefined && (granularity < GRANULARITY_MIN || !Number.isInteger(Math.log2(granularity)))) {
      throw new QmpError('Granularity must be power of 2 and at least 512');
    }
    const there = await this.#list(node, known);
    if (there.some((bitmap) => bitmap.name === name)) throw new QmpError(`Bitmap already exists: ${name}`);
  }

  async change({ node, name }: Bitmap, change: 'remove' | 'clear' | 'enable' | 'disable'): Promise<void> {
    const { thread } = await this.find(node, name);
    await thread.call('bitmap-change', { disk: node, name, change });
  }

  async merge(args: BitmapMerge): Promise<void> {
    const { node, target, bitmaps } = args;
    const { thread } = await this.find(node, target);
    await this.assertSources(args);
    await thread.call('bitmap-merge', { disk: node, name: target, sources: bitmaps });
  }

  /** Throws where one of the bitmaps that are to be merged is not there; `made`: some of that node are about to be. */
  async assertSources(
    { node, bitmaps }: BitmapMerge,
    made: (name: string) => boolean = () => false,
    known?: KnownBitmaps,
  ): Promise<void> {
    for (const source of bitmaps) {
      const from = typeof source === 'string' ? { node, name: source } : source;
      if (from.node === node && made(from.name)) continue;
      await this.assertBeside(node, from, known);
    }
  }

  /** Throws where a bitmap is not there, or not in the thread of `node`. */
  async assertBeside(node: string, from: Bitmap, known?: KnownBitmaps): Promise<void> {
    if (!this.#nodes.find(from.node)) throw new QmpError(`Node '${from.node}' not found`);
    const { thread } = await this.find(from.node, from.name, known);
    if (thread === this.#thread(node)) return;
    throw new QmpError(`Bitmap '${from.name}' of node '${from.node}' is in another IOThread than '${node}'`);
  }

  async hash({ node, name }: Bitmap): Promise<string> {
    const { thread } = await this.find(node, name);
    return thread.call('bitmap-hash', { disk: node, name });
  }

  async find(
    node: string,
    name: string,
    known?: KnownBitmaps,
  ): Promise<{ readonly thread: IOThread; readonly info: BitmapInfo }> {
    const thread = this.#thread(node);
    const info = (await this.#list(node, known)).find((bitmap) => bitmap.name === name);
    if (!info) throw new QmpError(`Dirty bitmap '${name}' not found`);
    return { thread, info };
  }

  #thread(node: string): IOThread {
    return this.#nodes.lookup(undefined, node);
  }
}
