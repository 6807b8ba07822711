/**
 * Files through node:fs, in libuv's threads. What node:fs lacks (holes, fallocate, locks, device geometry) comes from
 * the native layer where there is one, as calls that the kernel answers from memory; without it a file is all data,
 * takes no locks and cannot be punched.
 */
import {
  close,
  constants,
  fdatasync,
  fstat,
  fstatSync,
  ftruncate,
  open,
  read,
  readFileSync,
  readv,
  type Stats,
  write,
  writev,
} from 'node:fs';
import { assert } from '../../base/assert.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import * as nativeFile from '../../native/file.ts';
import * as nativeLock from '../../native/lock.ts';
import type { AioFile, AllocateMode, FileStat, OpenFileOptions } from '../backend.ts';
import { directRefusal } from '../direct.ts';
import type { AioOp } from '../op.ts';
import type { OpOwner } from '../op-table.ts';
import { PoolTask } from '../thread-pool.ts';
import type { PoolLoop, PoolResource } from './loop.ts';
import { call, nodeErrno } from './node-errors.ts';

/** Runs in one readv(2) or writev(2); what lies beyond makes the operation short. */
const IOV_MAX = 1024;
/** The most bytes that Linux moves in one call. */
const MAX_TRANSFER = 0x7fff_f000;
/** Requests that a file keeps for reuse. */
const SPARE_TASKS = 64;
/** Where the file system does not say what O_DIRECT needs. */
const DIRECT_ALIGNMENT = 4096;

const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = nativeFile.FallocateMode;
const ALLOCATE_MODES: Record<AllocateMode, number> = {
  punch: PUNCH_HOLE | KEEP_SIZE,
  zero: ZERO_RANGE | KEEP_SIZE,
  allocate: 0,
};

type FileOperation = 'read' | 'write' | 'datasync';

/** One read, write or datasync on its way through libuv. */
class FileTask extends PoolTask implements OpOwner {
  readonly #file: PoolFile;
  #operation: FileOperation = 'read';
  #iov: Iov | undefined;
  #at: Offset = 0;

  constructor(file: PoolFile) {
    super();
    this.#file = file;
  }

  prepare(operation: FileOperation, iov: Iov | undefined, at: Offset): void {
    this.#operation = operation;
    this.#iov = iov;
    this.#at = at;
  }

  cancel(): void {
    this.pool?.cancel(this);
  }

  describe(): string {
    return `${this.#operation} of '${this.#file.path}'`;
  }

  start(): void {
    try {
      this.#call();
    } catch (error) {
      // node checks its arguments before it starts anything.
      this.#done(error as NodeJS.ErrnoException, 0);
    }
  }

  #call(): void {
    const { fd } = this.#file;
    const iov = this.#iov;
    if (!iov) {
      fdatasync(fd, this.#synced);
      return;
    }
    if (iov.length === 0) {
      this.#done(null, 0);
    } else if (iov.count === 1) {
      const bytes = iov.memories[0]!.bytes;
      const length = Math.min(iov.lengths[0]!, MAX_TRANSFER);
      if (this.#operation === 'read') read(fd, bytes, iov.offsets[0]!, length, this.#at, this.#done);
      else write(fd, bytes, iov.offsets[0]!, length, this.#at, this.#done);
    } else {
      const runs: Uint8Array[] = [];
      for (let i = 0; i < Math.min(iov.count, IOV_MAX); i++) runs.push(iov.run(i));
      if (this.#operation === 'read') readv(fd, runs, this.#at, this.#done);
      else writev(fd, runs, this.#at, this.#done);
    }
  }

  readonly #synced = (error: NodeJS.ErrnoException | null): void => this.#done(error, 0);

  readonly #done = (error: NodeJS.ErrnoException | null, count: number): void => {
    this.#iov = undefined;
    this.finish(error ? -nodeErrno(error) : count);
    this.#file.recycle(this);
  };
}

export async function openPoolFile(loop: PoolLoop, path: string, options: OpenFileOptions): Promise<AioFile> {
  // Without O_NONBLOCK a FIFO would keep a thread of libuv's pool waiting for its other end.
  const flags =
    (options.writable ? constants.O_RDWR : constants.O_RDONLY) |
    (constants.O_NONBLOCK ?? 0) |
    (options.direct ? (constants.O_DIRECT ?? 0) : 0) |
    (options.create ? constants.O_CREAT : 0) |
    (options.truncate ? constants.O_TRUNC : 0) |
    (options.exclusive ? constants.O_EXCL : 0);
  const what = `open '${path}'`;
  const where = { path, op: 'open' };
  if (options.fd !== undefined) return duplicateOf(loop, path, options.fd, options.direct === true);
  const fd = await call<number>(what, where, (callback) => open(path, flags, 0o644, callback));
  try {
    const stats = fstatSync(fd);
    if (stats.isDirectory()) {
      throw new BlockError(Errno.EISDIR, `Could not ${what}: ${errnoText(Errno.EISDIR)}`, { where });
    }
    if (stats.isFIFO() || stats.isSocket()) {
      throw new BlockError(Errno.ENOTSUP, `Could not ${what}: It is neither a file nor a device`, { where });
    }
    if (nativeFile.available()) nativeFile.setBlocking(fd);
    return new PoolFile(loop, path, fd, options.direct === true, stats, false);
  } catch (error) {
    await call<void>(what, where, (callback) => close(fd, callback));
    throw error;
  }
}

function duplicateOf(loop: PoolLoop, path: string, fd: number, direct: boolean): AioFile {
  const copy = nativeFile.available() ? nativeFile.duplicate(fd) : -Errno.ENOTSUP;
  if (copy < 0) {
    throw new BlockError(copy, `Could not open '${path}': ${errnoText(copy)}`, { where: { path, op: 'open' } });
  }
  return new PoolFile(loop, path, copy, direct, fstatSync(copy), true);
}

class PoolFile implements AioFile, OpOwner, PoolResource {
  readonly path: string;
  readonly fd: number;
  readonly nativeFua = false;
  readonly canAllocate: boolean;
  readonly canLock: boolean;
  readonly #loop: PoolLoop;
  #alignment: Bytes;
  /** Capacity of a block device, undefined for anything else. */
  readonly #deviceSize: Bytes | undefined;
  readonly #native = nativeFile.available();
  readonly #spare: FileTask[] = [];
  /** A duplicate, which node:fs does not know of. */
  readonly #copy: boolean;
  #closing: Promise<void> | undefined;

  constructor(loop: PoolLoop, path: string, fd: number, direct: boolean, stats: Stats, copy: boolean) {
    this.#loop = loop;
    this.#copy = copy;
    this.path = path;
    this.fd = fd;
    this.#deviceSize = stats.isBlockDevice() ? deviceSize(fd, stats.rdev) : undefined;
    this.#alignment = direct ? directAlignment(fd, stats) : 1;
    this.canAllocate = this.#native && !stats.isCharacterDevice();
    this.canLock = this.#native && nativeLock.canLock(fd);
    loop.resources.add(this);
  }

  read(op: AioOp, iov: Iov, at: Offset): void {
    this.#submit(op, 'read', iov, at);
  }

  write(op: AioOp, iov: Iov, at: Offset, durable: boolean): void {
    assert(!durable, 'pool has no durable writes: datasync follows them');
    this.#submit(op, 'write', iov, at);
  }

  datasync(op: AioOp): void {
    this.#submit(op, 'datasync', undefined, 0);
  }

  #submit(op: AioOp, operation: FileOperation, iov: Iov | undefined, at: Offset): void {
    const task = this.#spare.pop() ?? new FileTask(this);
    task.prepare(operation, iov, at);
    if (!this.#loop.begin(op, task)) return;
    this.#loop.host.stats.submits++;
    this.#loop.threads.submit(task, op);
  }

  /** @internal */
  recycle(task: FileTask): void {
    if (this.#spare.length < SPARE_TASKS) this.#spare.push(task);
  }

  /** For {@link allocate}, which the kernel answers inside the call: nothing to cancel. */
  cancel(): void {}

  describe(): string {
    return `allocate of '${this.path}'`;
  }

  endWaiting(): void {}

  allocate(op: AioOp, mode: AllocateMode, at: Offset, length: Bytes): void {
    if (!this.#loop.begin(op, this)) return;
    const result = this.canAllocate ? nativeFile.fallocate(this.fd, ALLOCATE_MODES[mode], at, length) : -Errno.ENOTSUP;
    this.#loop.end(op, result === -Errno.ENOSYS || result === -Errno.ENODEV ? -Errno.ENOTSUP : result);
  }

  extent(at: Offset, limit: Bytes): number {
    if (this.#native) return nativeFile.extent(this.fd, at, limit);
    const size = this.#deviceSize ?? fstatSync(this.fd).size;
    return at >= size ? 0 : Math.min(limit, size - at);
  }

  truncate(size: Bytes): Promise<void> {
    const what = `resize '${this.path}' to ${size} bytes`;
    return call<void>(what, { path: this.path, op: 'truncate' }, (callback) => ftruncate(this.fd, size, callback));
  }

  async stat(): Promise<FileStat> {
    const where = { path: this.path, op: 'stat' };
    const stats = await call<Stats>(`examine '${this.path}'`, where, (callback) => fstat(this.fd, callback));
    return {
      kind: kindOf(stats),
      size: this.#deviceSize ?? stats.size,
      allocated: this.#deviceSize ?? stats.blocks * 512,
      alignment: this.#alignment,
      dev: stats.dev,
      ino: stats.ino,
    };
  }

  setDirect(direct: boolean): void {
    const result = this.#native ? nativeFile.setDirect(this.fd, direct) : -Errno.ENOTSUP;
    if (result < 0) throw directRefusal(this.path, direct, result);
    this.#alignment = direct ? directAlignment(this.fd, fstatSync(this.fd)) : 1;
  }

  async lock(kind: 'read' | 'write' | 'none', at: Offset, length: Bytes): Promise<boolean> {
    if (!this.canLock) return true;
    const result = nativeLock.lock(this.fd, kind, at, length);
    if (result === -Errno.EAGAIN || result === -Errno.EACCES) return false;
    if (result < 0) throw new BlockError(result, `Could not lock '${this.path}': ${errnoText(result)}`);
    return true;
  }

  async testLock(kind: 'read' | 'write', at: Offset, length: Bytes): Promise<boolean> {
    return this.canLock && nativeLock.testLock(this.fd, kind, at, length);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      if (this.#copy) nativeFile.close(this.fd);
      else await call<void>(`close '${this.path}'`, { path: this.path }, (callback) => close(this.fd, callback));
    } finally {
      this.#loop.resources.delete(this);
    }
  }
}

function kindOf(stats: Stats): FileStat['kind'] {
  if (stats.isFile()) return 'file';
  if (stats.isBlockDevice()) return 'block';
  if (stats.isCharacterDevice()) return 'char';
  return stats.isDirectory() ? 'directory' : 'other';
}

/** The number that Linux shows in sysfs for a block device's property; undefined where it does not. */
function sysfsNumber(rdev: number, property: string): number | undefined {
  const minor = (rdev % 256) + (Math.floor(rdev / 2 ** 20) % 2 ** 12) * 256;
  const major = Math.floor(rdev / 256) % 4096;
  const device = `/sys/dev/block/${major}:${minor}`;
  // A partition has no queue of its own: it is below its disk.
  for (const path of [`${device}/${property}`, `${device}/../${property}`]) {
    try {
      return Number.parseInt(readFileSync(path, 'utf8'), 10);
    } catch {
      // Not there: try the next.
    }
  }
  return undefined;
}

function deviceSize(fd: number, rdev: number): Bytes {
  if (nativeFile.available()) {
    const size = nativeFile.deviceSize(fd);
    if (size >= 0) return size;
  }
  // In units of 512 bytes whatever the device's own block size is (Documentation/ABI/stable/sysfs-block).
  const sectors = sysfsNumber(rdev, 'size');
  if (sectors === undefined) throw new BlockError(Errno.ENOTSUP, 'Could not find out the size of the block device');
  return sectors * 512;
}

function directAlignment(fd: number, stats: Stats): Bytes {
  if (stats.isBlockDevice()) return sysfsNumber(stats.rdev, 'queue/logical_block_size') ?? DIRECT_ALIGNMENT;
  if (!nativeFile.available()) return DIRECT_ALIGNMENT;
  const native = nativeFile.fstat(fd);
  if (typeof native === 'number' || native.directOffsetAlign === 0) return DIRECT_ALIGNMENT;
  return Math.max(native.directOffsetAlign, native.directMemoryAlign);
}
