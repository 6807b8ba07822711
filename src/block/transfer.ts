/** Moving bytes of a leaf, on the coroutine path: short results, limits, and memory that the leaf cannot use. */
import { WaitOp } from '../aio/op.ts';
import { BlockError, Errno, ioError } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import { MiB, type Offset } from '../base/units.ts';
import { BounceUse, bouncePool } from './bounce.ts';
import { isIovAligned } from './fast.ts';
import type { BlockNode } from './node.ts';

/** Copied through memory of our own in pieces of this size. */
const BOUNCE_PIECE = MiB;

/** Adds `length` bytes of `source` from `from` to the end of `target`. */
export function appendIov(target: Iov, source: Iov, from: number, length: number): void {
  const part = source.slice(from, length);
  for (let i = 0; i < part.count; i++) target.push(part.memories[i]!, part.offsets[i]!, part.lengths[i]!);
}

/** Copies all of `source` into `target`, from `at` on. */
export function copyIov(target: Iov, at: number, source: Iov): void {
  let done = at;
  for (let i = 0; i < source.count; i++) done += target.copyFrom(source.runForCopying(i), done);
}

/** True when the leaf can take the iov as it is. */
function usable(node: BlockNode, iov: Iov): boolean {
  const { maxIov, memoryAlignment } = node.limits;
  return iov.count <= maxIov && (memoryAlignment === 1 || isIovAligned(iov, memoryAlignment));
}

/** Reads from a node that moves bytes itself. The range is aligned and no longer than its maxTransfer. */
export async function readLeaf(node: BlockNode, at: Offset, iov: Iov): Promise<void> {
  if (usable(node, iov)) {
    await readRaw(node, at, iov);
    return;
  }
  const pool = bouncePool(node.aio, node.height, BounceUse.TRANSFER);
  for (let done = 0; done < iov.length; ) {
    const bounce = await pool.acquire(Math.min(BOUNCE_PIECE, iov.length - done));
    try {
      await readRaw(node, at + done, bounce.iov);
      copyIov(iov, done, bounce.iov);
      done += bounce.iov.length;
    } finally {
      bounce.release();
    }
  }
}

export async function writeLeaf(node: BlockNode, at: Offset, iov: Iov, flags: number): Promise<void> {
  if (usable(node, iov)) {
    await writeRaw(node, at, iov, flags);
    return;
  }
  const pool = bouncePool(node.aio, node.height, BounceUse.TRANSFER);
  for (let done = 0; done < iov.length; ) {
    const bounce = await pool.acquire(Math.min(BOUNCE_PIECE, iov.length - done));
    try {
      copyIov(bounce.iov, 0, iov.slice(done, bounce.iov.length));
      await writeRaw(node, at + done, bounce.iov, flags);
      done += bounce.iov.length;
    } finally {
      bounce.release();
    }
  }
}

async function readRaw(node: BlockNode, at: Offset, iov: Iov): Promise<void> {
  const { impl } = node;
  if (!impl.submitRead) {
    if (!impl.preadv) throw ioError(Errno.ENOTSUP, `Could not read from node '${node.name}'`, { node: node.name });
    await impl.preadv(at, iov);
    return;
  }
  const op = new WaitOp();
  let rest = iov;
  for (let done = 0; ; ) {
    const ended = op.wait();
    impl.submitRead(op, rest, at + done);
    const result = await ended;
    if (result === -Errno.EINTR || result === -Errno.EAGAIN) continue;
    if (result < 0) {
      if (op.failure instanceof BlockError) throw op.failure;
      throw failed(node, 'read', at, iov.length, result);
    }
    done += result;
    if (done === iov.length) return;
    // Nothing more, or (direct I/O) an end in the middle of a block: the end of the file.
    if (result === 0 || (at + done) % node.alignment !== 0) {
      iov.fill(0, done);
      return;
    }
    rest = iov.slice(done, iov.length - done);
  }
}

async function writeRaw(node: BlockNode, at: Offset, iov: Iov, flags: number): Promise<void> {
  const { impl } = node;
  if (!impl.submitWrite) {
    if (!impl.pwritev) throw ioError(Errno.ENOTSUP, `Could not write to node '${node.name}'`, { node: node.name });
    await impl.pwritev(at, iov, flags);
    return;
  }
  const op = new WaitOp();
  let rest = iov;
  for (let done = 0; ; ) {
    const ended = op.wait();
    impl.submitWrite(op, rest, at + done, flags);
    const result = await ended;
    if (result === -Errno.EINTR || result === -Errno.EAGAIN) continue;
    if (result < 0) throw failed(node, 'write', at, iov.length, result);
    if (result === 0) throw failed(node, 'write', at, iov.length, Errno.ENOSPC);
    done += result;
    if (done === iov.length) return;
    rest = iov.slice(done, iov.length - done);
  }
}

function failed(node: BlockNode, op: string, at: Offset, length: number, errno: number): Error {
  return ioError(errno, `Could not ${op} ${length} bytes at ${at} of node '${node.name}'`, {
    node: node.name,
    op,
    at,
    length,
  });
}
