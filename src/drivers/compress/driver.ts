/** compress: a filter whose writes are stored compressed, in whole clusters of the format below. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import {
  type Child,
  type Driver,
  type DriverNode,
  type Limits,
  type Mapping,
  type MapReason,
  type OpenContext,
  RequestFlags,
} from '../../block/driver.ts';

class CompressNode implements DriverNode {
  readonly limits: Partial<Limits>;
  readonly #file: Child;

  constructor(file: Child) {
    this.#file = file;
    // Requests become whole clusters.
    this.limits = { alignment: file.compressedUnit };
  }

  get length(): Bytes {
    return this.#file.length;
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why === 'write') out.other('opaque', want);
    else out.data(want, this.#file, at);
  }

  async pwritev(at: Offset, iov: Iov): Promise<void> {
    // The last cluster ends with the disk.
    await this.#file.write(at, iov.slice(0, Math.min(iov.length, this.length - at)), RequestFlags.COMPRESSED);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<'done'> {
    await this.#file.writeZeroes(at, length, flags);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<'done'> {
    await this.#file.discard(at, length);
    return 'done';
  }

  grew(_end: Offset): void {}

  inactivate(): Record<string, unknown> {
    return {};
  }

  truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    return this.#file.truncate(length, prealloc);
  }
}

export const compressDriver: Driver = {
  name: 'compress',
  role: 'filter',
  children: { file: 'filtered' },
  options: {},
  async open(context: OpenContext): Promise<DriverNode> {
    const refuse = (errno: number, why: string): BlockError =>
      new BlockError(errno, `Could not open a 'compress' node: ${why}`);
    const file = await context.openChild('file', 'filtered');
    if (!file) throw refuse(Errno.EINVAL, "option 'file' is missing");
    if (file.compressedUnit === 0) throw refuse(Errno.ENOTSUP, `node '${file.nodeName}' below cannot compress`);
    if (file.compressedUnit > MiB)
      throw refuse(Errno.ENOTSUP, `clusters of ${file.compressedUnit} bytes are too large`);
    return new CompressNode(file);
  },
};
