/** Memory that requests of a handle may use: SharedArrayBuffers that home knows too. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { Bytes } from '../base/units.ts';
import { REGIONS_MAX, type ToHome } from './layout.ts';

/** Offsets and lengths of runs are 32 bits. */
const REGION_BYTES_MAX: Bytes = 2 ** 32 - 1;

/** Made by `handle.register`. */
export class SharedRegion implements Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** No thread but home needs it. */
  readonly address = 0;
  /** @internal Whose it is, and its number there. */
  readonly owner: object;
  /** @internal */ readonly id: number;
  /** @internal How many requests it is lent to. */ users = 0;
  /** @internal */ released = false;

  constructor(owner: object, id: number, buffer: SharedArrayBuffer) {
    this.owner = owner;
    this.id = id;
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
  }
}

/** The regions of one handle. */
export class RegionTable {
  readonly #owner: object;
  readonly #tell: (message: ToHome) => void;
  readonly #regions = new Map<ArrayBufferLike, SharedRegion>();
  #ids = 0;

  constructor(owner: object, tell: (message: ToHome) => void) {
    this.#owner = owner;
    this.#tell = tell;
  }

  add(buffer: SharedArrayBuffer): SharedRegion {
    const refuse = (errno: number, why: string): BlockError =>
      new BlockError(errno, `Could not register the memory: ${why}`);
    if (!(buffer instanceof SharedArrayBuffer)) throw refuse(Errno.EFAULT, 'it is not a SharedArrayBuffer');
    if (this.#regions.has(buffer)) throw refuse(Errno.EEXIST, 'it is registered already');
    if (buffer.byteLength > REGION_BYTES_MAX) throw refuse(Errno.EFBIG, `${buffer.byteLength} bytes, 4 GiB or more`);
    if (this.#regions.size >= REGIONS_MAX) throw refuse(Errno.ENOSPC, `${REGIONS_MAX} regions are registered`);
    const region = new SharedRegion(this.#owner, ++this.#ids, buffer);
    this.#regions.set(buffer, region);
    this.#tell({ kind: 'memory', id: region.id, bytes: region.bytes });
    return region;
  }

  remove(region: SharedRegion): void {
    const refuse = (errno: number, why: string): BlockError =>
      new BlockError(errno, `Could not unregister the memory: ${why}`);
    if (region.owner !== this.#owner || region.released) throw refuse(Errno.EBADF, 'it is not registered');
    if (region.users > 0) throw refuse(Errno.EBUSY, `${region.users} requests use it`);
    region.released = true;
    this.#regions.delete(region.bytes.buffer);
    this.#tell({ kind: 'forget', id: region.id });
  }

  /** Adds `bytes`, a part of a region, to `iov`. */
  push(iov: Iov, bytes: Uint8Array): void {
    const region = this.#regions.get(bytes.buffer);
    if (!region) {
      throw new BlockError(Errno.EFAULT, 'Could not use the memory: it is not on a buffer registered with this handle');
    }
    iov.push(region, bytes.byteOffset, bytes.byteLength);
  }
}
