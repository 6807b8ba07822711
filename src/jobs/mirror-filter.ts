/**
 * The filter that a mirror in the mode write-blocking puts over its source: what a guest writes goes to the source,
 * then to the target, and only then has the guest's write ended. What does not get to the target is dirty. Where all is
 * dirty anyway, it goes to the source only: it will be copied. Nobody can ask for it by name, so it is no driver of
 * src/drivers.
 */
import { BlockError } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import {
  type Child,
  type Driver,
  type DriverNode,
  type Mapping,
  type MapReason,
  RequestFlags,
  type Supported,
} from '../block/driver.ts';
import type { DirtyCopy } from './dirty-copy.ts';

export interface MirrorSide {
  readonly copy: DirtyCopy;
  /** A write to the target has failed; the range is dirty again. */
  readonly onFailure: (error: BlockError) => void;
}

class MirrorFilterNode implements DriverNode {
  readonly #file: Child;
  readonly #target: Child;
  readonly #side: MirrorSide;

  constructor(file: Child, target: Child, side: MirrorSide) {
    this.#file = file;
    this.#target = target;
    this.#side = side;
  }

  get length(): Bytes {
    return this.#file.length;
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why === 'write') out.other('opaque', want);
    else out.data(want, this.#file, at);
  }

  pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    return this.#both(
      at,
      iov.length,
      () => this.#file.write(at, iov, flags),
      () => this.#target.write(at, iov),
    );
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    await this.#both(
      at,
      length,
      () => this.#file.writeZeroes(at, length, flags),
      () => this.#target.writeZeroes(at, length, flags & RequestFlags.MAY_UNMAP),
    );
    return 'done';
  }

  /** What it reads as afterwards only the source knows. */
  async discard(at: Offset, length: Bytes): Promise<Supported> {
    try {
      await this.#file.discard(at, length);
    } finally {
      this.#side.copy.mark(at, length);
    }
    return 'done';
  }

  async #both(at: Offset, length: Bytes, here: () => Promise<void>, there: () => Promise<void>): Promise<void> {
    const { copy, onFailure } = this.#side;
    if (copy.owes(at, length)) {
      try {
        return await here();
      } finally {
        copy.mark(at, length);
      }
    }
    using _range = await copy.exclude(at, length);
    try {
      await here();
    } catch (error) {
      // It may have changed something.
      copy.mark(at, length);
      throw error;
    }
    try {
      await there();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      copy.mark(at, length);
      onFailure(error);
    }
  }
}

export function mirrorFilter(side: MirrorSide): Driver {
  return {
    name: 'mirror_top',
    role: 'filter',
    children: { file: 'filtered', target: 'target' },
    options: {},
    async open(context): Promise<DriverNode> {
      const file = await context.openChild('file', 'filtered');
      const target = await context.openChild('target', 'target');
      return new MirrorFilterNode(file!, target!, side);
    },
  };
}
