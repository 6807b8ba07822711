/**
 * copy-before-write: a filter that keeps what the disk was when it was put there. What is about to be written over is
 * copied to `target` first. A backup is made over it, and `snapshot-access` shows what it keeps ("fleecing").
 */

import { coTimeout } from '../../aio/co-timeout.ts';
import type { AioContext } from '../../aio/context.ts';
import type { AioOp } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { BITS_MAX } from '../../base/paged-bits.ts';
import { type Bytes, isPowerOfTwo, KiB, MiB, type Offset } from '../../base/units.ts';
import {
  type Child,
  type CopyFailure,
  type Driver,
  type DriverNode,
  type Mapping,
  type MapReason,
  type OpenContext,
  Perm,
  type Supported,
} from '../../block/driver.ts';
import { QuickWrites } from './quick-write.ts';
import { Snapshot } from './snapshot.ts';

export interface CopyBeforeWriteOptions {
  /** What the guest's write comes to where its copy fails: the same, or nothing, and the snapshot is lost. */
  readonly 'on-cbw-error'?: 'break-guest-write' | 'break-snapshot';
  /** Seconds after which a copy has failed; 0 (default) for never. */
  readonly 'cbw-timeout'?: number;
  /** Only what is dirty in this bitmap is kept. */
  readonly 'bitmap.node'?: string;
  readonly 'bitmap.name'?: string;
  readonly 'min-cluster-size'?: Bytes;
}

const UNIT_MIN: Bytes = 64 * KiB;
const UNIT_MAX: Bytes = 16 * MiB;
const TIMEOUT_MAX = 2 ** 32 - 1;
/** Extents of a target that are looked at: a new one has few, and one that is far away is not to be waited for long. */
const LOOKS_MAX = 256;

class CopyBeforeWriteNode implements DriverNode {
  readonly pointInTime: Snapshot;
  readonly #aio: AioContext;
  readonly #file: Child;
  readonly #breaksSnapshot: boolean;
  readonly #timeoutNs: number;
  readonly #quick: QuickWrites;

  constructor(context: OpenContext, file: Child, target: Child, snapshot: Snapshot, options: CopyBeforeWriteOptions) {
    this.#aio = context.aio;
    this.#file = file;
    this.pointInTime = snapshot;
    this.#breaksSnapshot = options['on-cbw-error'] === 'break-snapshot';
    this.#timeoutNs = (options['cbw-timeout'] ?? 0) * 1e9;
    this.#quick = new QuickWrites(context, file, target, snapshot, this.#breaksSnapshot);
  }

  get length(): Bytes {
    return this.#file.length;
  }

  /** A write goes straight to the file where nothing has to be copied for it. */
  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why === 'write' && !this.pointInTime.isFree(at, want)) out.other('opaque', want);
    else out.data(want, this.#file, at);
  }

  beginWrite(op: AioOp, iov: Iov, at: Offset): boolean {
    return this.#timeoutNs === 0 && this.#quick.begin(op, iov, at);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    await this.#keep(at, iov.length);
    await this.#file.write(at, iov, flags);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    await this.#keep(at, length);
    await this.#file.writeZeroes(at, length, flags);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    await this.#keep(at, length);
    await this.#file.discard(at, length);
    return 'done';
  }

  async #keep(at: Offset, length: Bytes): Promise<void> {
    if (this.pointInTime.isFree(at, length)) return;
    const failure = await this.#inTime(this.pointInTime.beforeWrite(at, length));
    if (failure === undefined) return;
    if (!this.#breaksSnapshot) throw failure.error;
    this.pointInTime.break(failure.error);
  }

  async #inTime(copying: Promise<CopyFailure | undefined>): Promise<CopyFailure | undefined> {
    if (this.#timeoutNs === 0) return copying;
    try {
      return await coTimeout(this.#aio, copying, this.#timeoutNs, 'copy what is about to be written over');
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return { operation: 'write', error };
    }
  }

  drainBusy(): boolean {
    return this.pointInTime.busy;
  }

  grew(_end: Offset): void {}

  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    if (length < this.length) await this.#keep(length, this.length - length);
    await this.#file.truncate(length, prealloc);
  }
}

function refusal(why: string, errno: number = Errno.EINVAL): BlockError {
  return new BlockError(errno, `Could not open a 'copy-before-write' node: ${why}`);
}

function unitOf(target: Child, least: Bytes): Bytes {
  if (!isPowerOfTwo(Math.max(least, 1))) throw refusal(`option 'min-cluster-size' is ${least}, not a power of two`);
  const unit = Math.max(UNIT_MIN, target.limits.zeroAlignment, target.limits.alignment, least);
  if (unit > UNIT_MAX) throw refusal(`clusters of ${unit} bytes are larger than ${UNIT_MAX}`);
  return unit;
}

/** Tells the snapshot where the target has nothing but zeroes, so far as that is soon known. */
async function lookAtTarget(target: Child, snapshot: Snapshot, length: Bytes): Promise<void> {
  try {
    for (let at = 0, looks = 0; at < length && looks < LOOKS_MAX; looks++) {
      const zeroes = await target.zeroes(at, length - at);
      if (zeroes > 0) snapshot.isBlank(at, zeroes);
      at += Math.abs(zeroes);
    }
  } catch (error) {
    // What is wrong with it will show when it is written to.
    if (!(error instanceof BlockError)) throw error;
  }
}

export const copyBeforeWriteDriver: Driver<CopyBeforeWriteOptions> = {
  name: 'copy-before-write',
  role: 'filter',
  children: { file: 'filtered', target: 'target' },
  // What is written past it is not kept. While nobody uses it, it is on its way into the graph, or out of it.
  claims: (_options, used) => ({ perm: 0, unshared: used ? Perm.WRITE | Perm.RESIZE : 0 }),
  options: {
    'on-cbw-error': {
      type: 'enum',
      values: ['break-guest-write', 'break-snapshot'],
      help: 'what a failed copy breaks (default break-guest-write)',
    },
    'cbw-timeout': { type: 'number', help: 'seconds after which a copy has failed (default 0: never)' },
    'bitmap.node': { type: 'string', help: 'node whose bitmap says what is kept (default: all is)' },
    'bitmap.name': { type: 'string', help: 'name of that bitmap' },
    'min-cluster-size': { type: 'size', help: 'bytes that are copied together, at least (default 64 KiB)' },
  },
  async open(context: OpenContext, options: CopyBeforeWriteOptions): Promise<DriverNode> {
    const { 'cbw-timeout': timeout = 0, 'bitmap.node': node, 'bitmap.name': name } = options;
    if (!Number.isInteger(timeout) || timeout < 0 || timeout > TIMEOUT_MAX) {
      throw refusal(`option 'cbw-timeout' is ${timeout}, not a number of seconds up to 2^32-1`);
    }
    if ((node === undefined) !== (name === undefined)) throw refusal("option 'bitmap' needs 'node' and 'name'");
    const file = await context.openChild('file', 'filtered');
    if (!file) throw refusal("option 'file' is missing");
    const target = await context.openChild('target', 'target');
    if (!target) throw refusal("option 'target' is missing");
    if (target.length < file.length) {
      throw refusal(`the target has ${target.length} bytes, and ${file.length} may have to be kept`);
    }
    const unit = unitOf(target, options['min-cluster-size'] ?? 0);
    if (file.length / unit > BITS_MAX) {
      throw refusal(`a disk of ${file.length} bytes has more than ${BITS_MAX} clusters of ${unit}`, Errno.EFBIG);
    }
    const snapshot = new Snapshot(context.aio, file, target, unit, context.quiet);
    await lookAtTarget(target, snapshot, file.length);
    if (node !== undefined) snapshot.keepOnly((visit) => context.dirtyRanges(node, name!, visit));
    return new CopyBeforeWriteNode(context, file, target, snapshot, options);
  },
};
