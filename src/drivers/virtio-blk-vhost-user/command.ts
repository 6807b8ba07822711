/** One request to the device: pooled, with fixed fields. It may be sent more than once, to one back-end at a time. */
import type { AioOp } from '../../aio/op.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import { BlkRequestType } from '../../proto/virtio-blk/constants.ts';

export class Command {
  /** Ends with the result: bytes for reads and writes, 0, or a negative errno. */
  op: AioOp | null = null;
  /** Of BlkRequestType. */
  type: number = BlkRequestType.IN;
  at: Offset = 0;
  length: Bytes = 0;
  /** Of a discard or a write of zeroes: SEGMENT_UNMAP. */
  flags = 0;
  /** What a read fills and a write sends; the caller's until `op` ends. */
  iov: Iov | null = null;
  /** Where the device has it: see Device. */
  slot = -1;
  /** In the order of beginning. */
  serial = 0;
  /** How often it was found in flight: see Device.hasOverdue. */
  looks = 0;
  /** How often its back-end was lost under it. */
  repeats = 0;
}
