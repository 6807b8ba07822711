/** snapshot-access: shows, for reading, what a copy-before-write filter keeps of what its disk was. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type {
  BlockStatus,
  Child,
  Driver,
  DriverNode,
  MaybePromise,
  OpenContext,
  PointInTime,
} from '../../block/driver.ts';

class SnapshotAccessNode implements DriverNode {
  readonly readOnly = true;
  readonly length: Bytes;
  readonly #file: Child;

  constructor(file: Child) {
    this.#file = file;
    this.length = file.length;
  }

  preadv(at: Offset, iov: Iov): Promise<void> {
    return this.#kept.read(at, iov);
  }

  blockStatus(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void> {
    return this.#kept.status(at, want, out);
  }

  /** Looked up each time: another filter may have come in its place. */
  get #kept(): PointInTime {
    const { pointInTime, nodeName } = this.#file;
    if (pointInTime) return pointInTime;
    throw new BlockError(Errno.ENOTSUP, `Could not read the snapshot: node '${nodeName}' keeps none`);
  }
}

export const snapshotAccessDriver: Driver = {
  name: 'snapshot-access',
  role: 'format',
  children: { file: 'snapshot' },
  options: {},
  async open(context: OpenContext): Promise<DriverNode> {
    const file = await context.openChild('file', 'snapshot');
    const refusal = (why: string): BlockError =>
      new BlockError(Errno.EINVAL, `Could not open a 'snapshot-access' node: ${why}`);
    if (!file) throw refusal("option 'file' is missing");
    if (!file.pointInTime) throw refusal(`node '${file.nodeName}' keeps no snapshot`);
    return new SnapshotAccessNode(file);
  },
};
