/** Single requests on an open image, as somebody makes them by hand. All of it belongs to the home thread. */
import type { AioContext } from '../aio/context.ts';
import { Errno, ioError } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { alignDown, type Bytes, type Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { layerOf } from '../block/copy-up.ts';
import { type Breakpoints, RequestFlags } from '../block/driver.ts';
import type { BlockNode } from '../block/node.ts';
import { BlockStatus } from '../block/status.ts';
import { type ImageInfo, inspectHead } from '../lib/inspect.ts';
import { NodeHead } from '../lib/node-head.ts';
import { customNode } from '../lib/options.ts';
import { findImage, type ImageSpec, type OpenHow, openFound } from './open.ts';
import { TemporaryOverlay } from './temporary.ts';

export interface IoOpenHow extends OpenHow {
  /** What is written goes to a file that is gone afterwards. */
  readonly temporary?: boolean | undefined;
  /** What is read from layers below is kept in the image. */
  readonly copyOnRead?: boolean | undefined;
}

export interface WriteHow {
  /** On stable storage when it ends. */
  readonly fua?: boolean | undefined;
  readonly compressed?: boolean | undefined;
}

export interface ZeroHow {
  readonly fua?: boolean | undefined;
  readonly mayUnmap?: boolean | undefined;
  /** ENOTSUP rather than to write zeroes as data. */
  readonly noFallback?: boolean | undefined;
}

/** A range that the image's own layer holds, or one that it does not hold. */
export interface Allocation {
  readonly at: Offset;
  readonly length: Bytes;
  readonly allocated: boolean;
}

/** One kind of memory for all that is given in `lengths`: requests have a run for each. */
type Lengths = readonly Bytes[];

export class ImageIo {
  readonly #blk: BlockBackend;
  readonly #name: string;
  /** Its format's, or that of a filter which was named. */
  readonly #node: BlockNode;

  private constructor(blk: BlockBackend, name: string, node: BlockNode) {
    this.#blk = blk;
    this.#name = name;
    this.#node = node;
  }

  /** Throws as openImage does. */
  static async open(context: AioContext, spec: ImageSpec, how: IoOpenHow = {}): Promise<ImageIo> {
    const { tree } = await findImage(context, spec, how.temporary ? { ...how, write: false } : how);
    using overlay = how.temporary ? await TemporaryOverlay.over(context, tree) : undefined;
    const image = overlay?.tree ?? tree;
    const top = how.copyOnRead ? customNode({ driver: 'copy-on-read', file: image }) : image;
    const blk = await openFound(context, spec, top, how);
    return new ImageIo(blk, spec.name, how.copyOnRead ? blk.root!.filtered!.node : blk.root!);
  }

  get length(): Bytes {
    return this.#blk.length;
  }

  /** The name of its driver. */
  get format(): string {
    return this.#node.driver.name;
  }

  /** Of the first node on the way to the bytes that has any. */
  get breakpoints(): Breakpoints | undefined {
    let node: BlockNode | undefined = this.#blk.root!;
    while (node !== undefined && node.impl.breakpoints === undefined) node = node.primary?.node;
    return node?.impl.breakpoints;
  }

  get readOnly(): boolean {
    return this.#blk.readOnly;
  }

  /** All bytes that are there; EIO beyond the end. */
  async read(at: Offset, lengths: Lengths): Promise<Uint8Array> {
    const { bytes, iov } = this.#memory('read', at, lengths);
    await this.#blk.read(at, iov);
    return bytes;
  }

  /** Writes what `fill` makes of memory that is all zeroes. EIO beyond the end, ENOTSUP where nothing is compressed. */
  async write(at: Offset, lengths: Lengths, fill: (bytes: Uint8Array) => void, how: WriteHow = {}): Promise<void> {
    const { bytes, iov } = this.#memory('write', at, lengths);
    fill(bytes);
    await this.#blk.write(at, iov, (how.fua ? RequestFlags.FUA : 0) | (how.compressed ? RequestFlags.COMPRESSED : 0));
  }

  writeZeroes(at: Offset, length: Bytes, { fua, mayUnmap, noFallback }: ZeroHow = {}): Promise<void> {
    const flags = (mayUnmap ? RequestFlags.MAY_UNMAP : 0) | (noFallback ? RequestFlags.NO_FALLBACK : 0);
    return this.#blk.writeZeroes(at, length, flags | (fua ? RequestFlags.FUA : 0));
  }

  discard(at: Offset, length: Bytes): Promise<void> {
    return this.#blk.discard(at, length);
  }

  flush(): Promise<void> {
    return this.#blk.flush();
  }

  truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    return this.#blk.truncate(length, prealloc);
  }

  /** What the image's own layer holds of a range inside of it, neighbours of one kind as one. */
  async *allocations(at: Offset, length: Bytes): AsyncGenerator<Allocation> {
    const end = at + length;
    const status = new BlockStatus();
    let last: Allocation | undefined;
    for (let next = at; next < end; next += status.length) {
      await this.#blk.blockStatus(next, end - next, status);
      const allocated = status.depth === 1;
      if (last?.allocated === allocated) last = { ...last, length: last.length + status.length };
      else {
        if (last) yield last;
        last = { at: next, length: status.length, allocated };
      }
    }
    if (last) yield last;
  }

  /** What the image says of itself. */
  async info(): Promise<ImageInfo> {
    if (!this.readOnly) await this.#blk.flush();
    await using head = await NodeHead.ofNode(layerOf(this.#node.primary?.node ?? this.#node), this.#name);
    return await inspectHead(head, this.format);
  }

  /** Rejects with what the last flush failed with. */
  close(): Promise<void> {
    return this.#blk.close();
  }

  /** What would be refused costs no memory. */
  #memory(op: string, at: Offset, lengths: Lengths): { readonly bytes: Uint8Array; readonly iov: Iov } {
    const total = lengths.reduce((sum, length) => sum + length, 0);
    if (at + total > this.#blk.length) throw ioError(Errno.EIO, `Could not ${op} ${total} bytes at ${at}`);
    const bytes = new Uint8Array(new SharedArrayBuffer(total));
    const memory = this.#blk.context.backend.memory(bytes);
    const iov = new Iov();
    let done = 0;
    for (const length of lengths) {
      if (length > 0) iov.push(memory, done, length);
      done += length;
    }
    return { bytes, iov };
  }
}

/** The offset behind the disk of a qcow2 image that its saved states of machines begin at: that of the first table
 *  that no byte of the disk needs. [qcow2: Snapshots, l1_size] */
export function vmStateOffset(size: Bytes, clusterSize: Bytes, extendedL2: boolean): Offset {
  const tableBytes = (clusterSize / (extendedL2 ? 16 : 8)) * clusterSize;
  return alignDown(size + tableBytes - 1, tableBytes);
}
