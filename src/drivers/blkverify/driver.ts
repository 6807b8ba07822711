/**
 * blkverify: a filter that does everything to two images, and compares what reads of them give. `raw` is known to be
 * right, `test` is what is to be tried; what the disk is, is up to `test`. For tests.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import type { Child, Driver, DriverNode, Limits, Mapping, MapReason, OpenContext } from '../../block/driver.ts';

/** A read is compared at once: memory for this is kept, and requests that need it take turns. */
const PIECE: Bytes = MiB;

class BlkverifyNode implements DriverNode {
  readonly limits: Partial<Limits> = { maxTransfer: PIECE };
  readonly #context: OpenContext;
  readonly #raw: Child;
  readonly #test: Child;

  constructor(context: OpenContext, raw: Child, test: Child) {
    this.#context = context;
    this.#raw = raw;
    this.#test = test;
  }

  get length(): Bytes {
    return this.#test.length;
  }

  /** Nothing is known of the disk that was not compared. */
  map(_at: Offset, want: Bytes, _why: MapReason, out: Mapping): void {
    out.other('opaque', want);
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    const bytes = new Uint8Array(new SharedArrayBuffer(iov.length));
    const expected = Iov.of(this.#context.aio.backend.memory(bytes));
    await this.#both('read', at, iov.length, this.#raw.read(at, expected), this.#test.read(at, iov));
    const found = new Uint8Array(iov.length);
    iov.copyTo(found);
    const wrong = bytes.findIndex((byte, i) => byte !== found[i]);
    if (wrong >= 0) throw this.#mismatch('read', at, iov.length, `contents mismatch at offset ${at + wrong}`);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    await this.#both('write', at, iov.length, this.#raw.write(at, iov, flags), this.#test.write(at, iov, flags));
  }

  /** The other image is for comparing alone. */
  flush(): Promise<void> {
    return this.#test.flush();
  }

  inactivate(): Record<string, unknown> {
    return {};
  }

  /** Both fail in the same way, or both do not. */
  async #both(op: 'read' | 'write', at: Offset, length: Bytes, raw: Promise<void>, test: Promise<void>): Promise<void> {
    const [one, other] = await Promise.allSettled([raw, test]);
    const [expected, result] = [resultOf(one), resultOf(other)];
    if (expected !== result) throw this.#mismatch(op, at, length, `return value mismatch ${result} != ${expected}`);
    if (other.status === 'rejected') throw other.reason;
  }

  #mismatch(op: string, at: Offset, length: Bytes, what: string): BlockError {
    const message = `blkverify: ${op} offset=${at} bytes=${length} ${what}`;
    const where = { node: this.#context.nodeName, op: 'verify', at, length };
    return new BlockError(Errno.EIO, message, { where });
  }
}

/** 0, or an errno below it. */
function resultOf(outcome: PromiseSettledResult<void>): number {
  if (outcome.status === 'fulfilled') return 0;
  if (!(outcome.reason instanceof BlockError)) throw outcome.reason;
  return -outcome.reason.errno;
}

export const blkverifyDriver: Driver = {
  name: 'blkverify',
  role: 'filter',
  children: { test: 'filtered', raw: 'data' },
  options: {},
  async open(context: OpenContext): Promise<DriverNode> {
    const refuse = (why: string): BlockError =>
      new BlockError(Errno.EINVAL, `Could not open a 'blkverify' node: ${why}`);
    const raw = await context.openChild('raw', 'data');
    if (!raw) throw refuse("option 'raw' is missing");
    const test = await context.openChild('test', 'filtered');
    if (!test) throw refuse("option 'test' is missing");
    return new BlkverifyNode(context, raw, test);
  },
};
