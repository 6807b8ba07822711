/** Files on the ring: reads, writes, fdatasync and fallocate are ring operations; the rest is control path. */
import { close, constants, ftruncate, open } from 'node:fs';
import { promisify } from 'node:util';
import { BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import * as nativeFile from '../../native/file.ts';
import * as nativeLock from '../../native/lock.ts';
import { FSYNC_DATASYNC, Op } from '../../native/uring.ts';
import type { AioFile, AllocateMode, FileStat, OpenFileOptions } from '../backend.ts';
import { directRefusal } from '../direct.ts';
import type { AioOp } from '../op.ts';
import type { RingBackend } from './backend.ts';
import { IOV_MAX } from './iov-table.ts';

const openFd = promisify(open);
const closeFd = promisify(close);
const truncateFd = promisify(ftruncate);

const RWF_DSYNC = 2;
const FALLOC_KEEP_SIZE = 1;
const FALLOC_PUNCH_HOLE = 2;
const FALLOC_ZERO_RANGE = 16;
const ALLOCATE_MODES: Record<AllocateMode, number> = {
  punch: FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE,
  zero: FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE,
  allocate: 0,
};

function refusal(path: string, errno: number, why = errnoText(errno), cause?: unknown): BlockError {
  return new BlockError(errno, `Could not open '${path}': ${why}`, { where: { path, op: 'open' }, cause });
}

export async function openRingFile(backend: RingBackend, path: string, options: OpenFileOptions): Promise<AioFile> {
  // Without O_NONBLOCK a FIFO would keep us waiting for its other end.
  const flags =
    (options.writable ? constants.O_RDWR : constants.O_RDONLY) |
    constants.O_NONBLOCK |
    (options.direct ? constants.O_DIRECT : 0) |
    (options.create ? constants.O_CREAT : 0) |
    (options.truncate ? constants.O_TRUNC : 0) |
    (options.exclusive ? constants.O_EXCL : 0);
  if (options.fd !== undefined) {
    const copy = nativeFile.duplicate(options.fd);
    if (copy < 0) throw refusal(path, copy);
    backend.fds.add(copy);
    return new RingFile(backend, path, copy, options.direct === true, true);
  }
  let fd: number;
  try {
    fd = await openFd(path, flags, 0o644);
  } catch (error) {
    throw refusal(path, errnoOf(error), undefined, error);
  }
  const stat = nativeFile.fstat(fd);
  let bad: BlockError | undefined;
  if (typeof stat === 'number') bad = refusal(path, stat);
  else if (stat.kind === 'directory') bad = refusal(path, Errno.EISDIR);
  else if (stat.kind === 'other') bad = refusal(path, Errno.ENOTSUP, 'It is neither a file nor a device');
  // With it, the ring would answer EAGAIN instead of waiting for the disk.
  else if (nativeFile.setBlocking(fd) < 0) bad = refusal(path, Errno.EINVAL);
  if (bad) {
    await closeFd(fd);
    throw bad;
  }
  return new RingFile(backend, path, fd, options.direct === true, false);
}

class RingFile implements AioFile {
  readonly path: string;
  readonly fd: number;
  readonly nativeFua = true;
  readonly canAllocate = true;
  readonly canLock = true;
  readonly #backend: RingBackend;
  #direct: boolean;
  /** A duplicate, which node:fs does not know of. */
  readonly #copy: boolean;
  /** False once the file system has refused to read without waiting. */
  #canReadNow: boolean;

  constructor(backend: RingBackend, path: string, fd: number, direct: boolean, copy: boolean) {
    this.#backend = backend;
    this.#copy = copy;
    this.path = path;
    this.fd = fd;
    this.#direct = direct;
    // Direct reads have no cache to be in.
    this.#canReadNow = !direct;
  }

  read(op: AioOp, iov: Iov, at: Offset): void {
    this.#transfer(op, Op.READ, Op.READV, iov, at, 0);
  }

  readNow(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean {
    if (!this.#canReadNow) return false;
    const result = nativeFile.readCached(this.fd, memory.address + offset, length, at);
    if (result === -Errno.ENOTSUP) this.#canReadNow = false;
    return result === length;
  }

  write(op: AioOp, iov: Iov, at: Offset, durable: boolean): void {
    this.#transfer(op, Op.WRITE, Op.WRITEV, iov, at, durable ? RWF_DSYNC : 0);
  }

  #transfer(op: AioOp, one: number, many: number, iov: Iov, at: Offset, flags: number): void {
    if (iov.count === 1) {
      this.#backend.begin(op, one, this.fd, iov.memories[0]!, iov.offsets[0]!, iov.lengths[0]!, at, flags);
      return;
    }
    if (iov.count > IOV_MAX) {
      this.#backend.later(op, -Errno.EINVAL);
      return;
    }
    const vector = this.#backend.iovs.put(iov);
    if (vector < 0) this.#backend.later(op, -Errno.EAGAIN);
    else this.#backend.begin(op, many, this.fd, this.#backend.iovs.memory, vector, iov.count, at, flags);
  }

  datasync(op: AioOp): void {
    this.#backend.begin(op, Op.FSYNC, this.fd, null, 0, 0, 0, FSYNC_DATASYNC);
  }

  allocate(op: AioOp, mode: AllocateMode, at: Offset, length: Bytes): void {
    // fallocate's arguments in an entry: off = offset, addr = length, len = mode.
    this.#backend.begin(op, Op.FALLOCATE, this.fd, null, length, ALLOCATE_MODES[mode], at, 0);
  }

  extent(at: Offset, limit: Bytes): number {
    return nativeFile.extent(this.fd, at, limit);
  }

  async truncate(size: Bytes): Promise<void> {
    try {
      await truncateFd(this.fd, size);
    } catch (error) {
      const errno = errnoOf(error);
      throw new BlockError(errno, `Could not resize '${this.path}' to ${size} bytes: ${errnoText(errno)}`, {
        cause: error,
      });
    }
  }

  async stat(): Promise<FileStat> {
    const stat = nativeFile.fstat(this.fd);
    if (typeof stat === 'number') throw new BlockError(stat, `Could not look at '${this.path}': ${errnoText(stat)}`);
    const size = stat.kind === 'block' ? nativeFile.deviceSize(this.fd) : stat.size;
    if (size < 0) throw new BlockError(size, `Could not get the size of '${this.path}': ${errnoText(size)}`);
    return {
      kind: stat.kind,
      size,
      allocated: stat.blocks * 512,
      alignment: this.#direct ? stat.directOffsetAlign || this.#guessAlignment(stat.kind) : 1,
      dev: stat.dev,
      ino: stat.ino,
    };
  }

  setDirect(direct: boolean): void {
    const result = nativeFile.setDirect(this.fd, direct);
    if (result < 0) throw directRefusal(this.path, direct, result);
    this.#direct = direct;
    this.#canReadNow = !direct;
  }

  /** Where the file system does not say what O_DIRECT needs. */
  #guessAlignment(kind: FileStat['kind']): number {
    const sector = kind === 'block' ? nativeFile.deviceBlockSize(this.fd) : 0;
    return sector > 0 ? sector : 4096;
  }

  async lock(kind: 'read' | 'write' | 'none', at: Offset, length: Bytes): Promise<boolean> {
    const result = nativeLock.lock(this.fd, kind, at, length);
    if (result === -Errno.EAGAIN || result === -Errno.EACCES) return false;
    if (result < 0) throw new BlockError(result, `Could not lock '${this.path}': ${errnoText(result)}`);
    return true;
  }

  async testLock(kind: 'read' | 'write', at: Offset, length: Bytes): Promise<boolean> {
    return nativeLock.testLock(this.fd, kind, at, length);
  }

  async close(): Promise<void> {
    if (!this.#copy) {
      await closeFd(this.fd);
      return;
    }
    this.#backend.fds.delete(this.fd);
    nativeFile.close(this.fd);
  }
}
