/**
 * The filter that a mirror puts over its source. In the mode background everything passes. In write-blocking what a
 * guest writes goes to the source and to the target, and only then has the guest's write ended. What does not get to
 * the target is dirty. Where all is dirty anyway, it goes to the source only: it will be copied. Nobody can ask for it
 * by name, so it is no driver of src/drivers.
 */
import type { AioOp } from '../aio/op.ts';
import { BlockError, ioError } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import {
  type Child,
  type ChildRequest,
  type Driver,
  type DriverNode,
  type Mapping,
  type MapReason,
  type OpenContext,
  Perm,
  RequestFlags,
  type Supported,
} from '../block/driver.ts';
import type { DirtyCopy } from './dirty-copy.ts';

/** What the filter is told of its job. */
export class MirrorSide {
  /** There before anything is written. */
  copy!: DirtyCopy;
  /** What is written goes to the target, too. Changes while nothing is in flight. */
  writesBoth = false;
  /** A write to the target has failed; the range is dirty again. */
  readonly onFailure: (error: BlockError) => void;

  constructor(onFailure: (error: BlockError) => void) {
    this.onFailure = onFailure;
  }
}

/** A write that waits for nobody, to both at once. While it is in flight nobody else writes its range to the target. */
class BothWrite {
  readonly #node: MirrorFilterNode;
  readonly here: ChildRequest;
  readonly there: ChildRequest;
  op: AioOp | null = null;
  at: Offset = 0;
  end: Offset = 0;
  /** It goes to the source only: the range is copied later. */
  owed = false;
  left = 0;
  hereError = 0;
  thereError = 0;

  constructor(node: MirrorFilterNode, context: OpenContext) {
    this.#node = node;
    this.here = context.request((error) => {
      this.hereError = error;
      this.#ended();
    });
    this.there = context.request((error) => {
      this.thereError = error;
      this.#ended();
    });
  }

  #ended(): void {
    if (--this.left === 0) this.#node.writeEnded(this);
  }
}

class MirrorFilterNode implements DriverNode {
  readonly #context: OpenContext;
  readonly #file: Child;
  readonly #target: Child;
  readonly #side: MirrorSide;
  /** As many as there were in flight at once. */
  readonly #free: BothWrite[] = [];

  constructor(context: OpenContext, file: Child, target: Child, side: MirrorSide) {
    this.#context = context;
    this.#file = file;
    this.#target = target;
    this.#side = side;
  }

  get length(): Bytes {
    return this.#file.length;
  }

  /** What passes is as stable as the disk makes it. */
  get nativeFua(): boolean {
    return !this.#side.writesBoth;
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why === 'write' && this.#side.writesBoth) out.other('opaque', want);
    else out.data(want, this.#file, at);
  }

  beginWrite(op: AioOp, iov: Iov, at: Offset): boolean {
    const { copy } = this.#side;
    const write = this.#free.pop() ?? new BothWrite(this, this.#context);
    write.at = at;
    write.end = at + iov.length;
    write.owed = copy.owes(at, iov.length);
    if (!write.owed && !copy.excludeNow(write)) {
      this.#free.push(write);
      return false;
    }
    write.op = op;
    write.left = write.owed ? 1 : 2;
    write.hereError = 0;
    write.thereError = 0;
    write.here.iov.sliceOf(iov, 0, iov.length);
    write.here.write(this.#file, at);
    if (write.owed) return true;
    write.there.iov.sliceOf(iov, 0, iov.length);
    write.there.write(this.#target, at);
    return true;
  }

  /** @internal */
  writeEnded(write: BothWrite): void {
    const { copy, onFailure } = this.#side;
    const { at, end, op, owed, hereError, thereError } = write;
    const length = end - at;
    // One that has failed may have changed something.
    if (owed || hereError !== 0 || thereError !== 0) copy.mark(at, length);
    if (!owed) copy.include(write);
    if (thereError !== 0) {
      const { failure } = write.there;
      const where = { node: this.#target.nodeName, op: 'write', at, length };
      onFailure(
        failure instanceof BlockError ? failure : ioError(thereError, `Could not write ${length} bytes`, where),
      );
    }
    write.op = null;
    this.#free.push(write);
    op!.failure = write.here.failure;
    op!.complete(hereError === 0 ? length : hereError);
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
    const here = (): Promise<void> => this.#file.writeZeroes(at, length, flags);
    const there = (): Promise<void> => this.#target.writeZeroes(at, length, flags & RequestFlags.MAY_UNMAP);
    await (this.#side.writesBoth ? this.#both(at, length, here, there) : here());
    return 'done';
  }

  /** What it reads as afterwards only the source knows. */
  async discard(at: Offset, length: Bytes): Promise<Supported> {
    try {
      await this.#file.discard(at, length);
    } finally {
      if (this.#side.writesBoth) this.#side.copy.mark(at, length);
    }
    return 'done';
  }

  grew(_end: Offset): void {}

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
    children: { backing: 'filtered', target: 'target' },
    options: {},
    // What is written past it would not get to the target.
    claims: (_options, used) => ({ perm: 0, unshared: used && side.writesBoth ? Perm.WRITE | Perm.RESIZE : 0 }),
    async open(context): Promise<DriverNode> {
      const file = await context.openChild('backing', 'filtered');
      const target = await context.openChild('target', 'target');
      return new MirrorFilterNode(context, file!, target!, side);
    },
  };
}
