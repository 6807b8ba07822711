/** file and host_device: an image in a file or on a block device of this machine, through the context's backend. */
import type { AioFile, FileStat } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { type AioOp, WaitOp } from '../../aio/op.ts';
import { BlockError, Errno, errnoText, ioError } from '../../base/errors.ts';
import { Iov, type Memory } from '../../base/memory.ts';
import { alignUp, type Bytes, MiB, type Offset } from '../../base/units.ts';
import {
  type Driver,
  type DriverNode,
  type Limits,
  type OpenContext,
  type OptionSpec,
  PERM_ALL,
  Perm,
  RequestFlags,
  type StatusResult,
  type Supported,
} from '../../block/driver.ts';
import { ImageLocks } from './locks.ts';

export interface FileOptions {
  readonly filename: string;
  /** Image locks: where they can be had, always, or never. Default auto. */
  readonly locking?: 'auto' | 'on' | 'off';
  /** For QEMU's sake; the context decides. */
  readonly aio?: string;
  /** See {@link identityOf}: another file than this is not opened. */
  readonly identity?: string;
  /** Of a node that moves to another thread: its open file is used, `filename` is a name only. */
  readonly fd?: number;
}

/** Which file it is, whatever its name: one that was looked at and one that was opened later are the same, or not. */
export function identityOf({ dev, ino }: { readonly dev: number; readonly ino: number }): string {
  return `${dev}:${ino}`;
}

const PREFERRED = 4096;
const ZERO_PIECE = MiB;

class FileNode implements DriverNode {
  length: Bytes;
  limits: Partial<Limits> = {};
  nativeFua = false;
  readonly readOnly: boolean;
  /** Direct I/O needs memory that the others' may not be. */
  descriptor = -1;
  readonly #aio: AioContext;
  readonly #file: AioFile;
  #stat: FileStat;
  #direct = false;
  /** Its users may write to it. */
  #written = false;
  readonly #forceShare: boolean;
  readonly #locks: ImageLocks | undefined;
  /** What fdatasync failed with: the page cache may have dropped what it could not write (L6). */
  #lost = 0;
  /** A range known to be data, the last that was asked about (R10). */
  #dataFrom = 0;
  #dataTo = 0;
  /** False once the file system has refused that kind of fallocate. */
  #canZero: boolean;
  #canPunch: boolean;

  constructor(context: OpenContext, file: AioFile, stat: FileStat, readOnly: boolean, locks: ImageLocks | undefined) {
    this.#aio = context.aio;
    this.#file = file;
    this.#stat = stat;
    this.#forceShare = context.common['force-share'] ?? false;
    this.#locks = locks;
    this.#canZero = file.canAllocate;
    this.#canPunch = file.canAllocate;
    this.length = stat.size;
    this.readOnly = readOnly;
    this.#become(context.common.cache?.direct ?? false, stat);
  }

  /** All that follows from the file being direct, or buffered. */
  #become(direct: boolean, stat: FileStat): void {
    const file = this.#file;
    this.#direct = direct;
    this.#stat = stat;
    this.descriptor = direct ? -1 : file.fd;
    // A durable write through the page cache reports, and so forgets, a lost write of anybody's (L6): flush() keeps it.
    this.nativeFua = file.nativeFua && direct;
    const unit = direct ? stat.alignment : 1;
    this.length = this.#fills ? alignUp(stat.size, unit) : stat.size;
    this.limits = { alignment: unit, memoryAlignment: unit, optimal: PREFERRED, maxIov: 1024 };
  }

  readNow(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean {
    return this.#file.readNow?.(at, memory, offset, length) ?? false;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    this.#file.read(op, iov, at);
  }

  submitWrite(op: AioOp, iov: Iov, at: Offset, flags: number): void {
    this.#file.write(op, iov, at, (flags & RequestFlags.FUA) !== 0);
  }

  grew(end: Offset): void {
    if (end > this.length) this.length = end;
  }

  async flush(): Promise<void> {
    if (this.#lost !== 0) throw this.#failed('flush', this.#lost);
    const result = await this.#run((op) => this.#file.datasync(op));
    if (result >= 0) return;
    // The kernel reports a lost write once; a later fdatasync that succeeds would say that all is well.
    if (!this.#direct) this.#lost = result;
    throw this.#failed('flush', result);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    // Beyond the end the size would have to change as well: plain writes do that.
    if (at + length > this.length) return 'unsupported';
    this.#forgetData();
    if ((flags & RequestFlags.MAY_UNMAP) !== 0 && (await this.#punch(at, length)) === 'done') return 'done';
    if (!this.#canZero) return 'unsupported';
    const result = await this.#run((op) => this.#file.allocate(op, 'zero', at, length));
    if (result >= 0) return 'done';
    if (!isRefusal(result)) throw this.#failed(`zero ${length} bytes at ${at} of`, result);
    this.#canZero = result === -Errno.EINVAL;
    return 'unsupported';
  }

  discard(at: Offset, length: Bytes): Promise<Supported> {
    this.#forgetData();
    return this.#punch(at, length);
  }

  async #punch(at: Offset, length: Bytes): Promise<Supported> {
    if (!this.#canPunch) return 'unsupported';
    const result = await this.#run((op) => this.#file.allocate(op, 'punch', at, length));
    if (result >= 0) return 'done';
    if (!isRefusal(result)) throw this.#failed(`discard ${length} bytes at ${at} of`, result);
    this.#canPunch = result === -Errno.EINVAL;
    return 'unsupported';
  }

  status(at: Offset, want: Bytes, out: StatusResult): void {
    out.kind = 'data';
    if (at >= this.#dataFrom && at < this.#dataTo) {
      out.length = Math.min(want, this.#dataTo - at);
      return;
    }
    const extent = this.#file.extent(at, Math.max(want, this.length - at));
    if (extent > 0) {
      this.#dataFrom = at;
      this.#dataTo = at + extent;
      out.length = Math.min(want, extent);
      return;
    }
    // 0: past the end, or truncated behind our back; it reads as zeroes either way.
    out.kind = 'zero';
    out.length = extent === 0 ? want : Math.min(want, -extent);
  }

  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    const old = this.length;
    if (this.#stat.kind === 'block') {
      if (length !== old) throw this.#failed(`resize to ${length} bytes:`, Errno.ENOTSUP);
      return;
    }
    if (this.#direct && length % this.#stat.alignment !== 0) {
      throw this.#failed(
        `resize to ${length} bytes, not a multiple of ${this.#stat.alignment} (cache.direct),`,
        Errno.EINVAL,
      );
    }
    this.#forgetData();
    await this.#file.truncate(length);
    this.length = length;
    if (prealloc === 'off' || length <= old) return;
    try {
      if (prealloc === 'falloc') await this.#allocate(old, length - old);
      else await this.#writeZeroes(old, length - old);
    } catch (error) {
      await this.#file.truncate(old);
      this.length = old;
      throw error;
    }
  }

  async #allocate(at: Offset, length: Bytes): Promise<void> {
    const result = await this.#run((op) => this.#file.allocate(op, 'allocate', at, length));
    if (result < 0) throw this.#failed(`allocate ${length} bytes at ${at} of`, result);
  }

  async #writeZeroes(at: Offset, length: Bytes): Promise<void> {
    const { memory, first } = this.#alignedMemory(Math.min(length, ZERO_PIECE));
    const iov = new Iov();
    for (let done = 0; done < length; ) {
      iov.reset().push(memory, first, Math.min(ZERO_PIECE, length - done));
      const result = await this.#run((op) => this.#file.write(op, iov, at + done, false));
      if (result <= 0) throw this.#failed(`write zeroes at ${at + done} of`, result || Errno.ENOSPC);
      done += result;
    }
  }

  async permissions(perm: number, shared: number): Promise<void> {
    await this.#locks?.set(perm, this.#forceShare ? PERM_ALL : shared);
    this.#written = (perm & Perm.WRITE) !== 0;
    if (this.#written && this.#fills) await this.#fill();
  }

  async setDirect(direct: boolean): Promise<void> {
    const before = this.#direct;
    if (direct === before) return;
    if (direct) assertDirect(this.#aio, this.#file.path);
    // What was written through the page cache, and is lost, a flush is to be told of, and not a direct write (L6).
    if (direct && !this.readOnly) await this.flush();
    const { length } = this;
    const stat = this.#stat;
    this.#file.setDirect(direct);
    try {
      this.#become(direct, await this.#file.stat());
      if (direct) await this.#tryRead();
      if (this.#written && this.#fills) await this.#fill();
    } catch (error) {
      this.#file.setDirect(before);
      this.#become(before, stat);
      this.length = length;
      throw error;
    }
  }

  /** There are file systems that take O_DIRECT, and then refuse what is asked for. */
  async #tryRead(): Promise<void> {
    const { alignment } = this.#stat;
    const { memory, first } = this.#alignedMemory(alignment);
    const result = await this.#run((op) => this.#file.read(op, Iov.of(memory, first, alignment), 0));
    if (result < 0) throw this.#failed('read directly from', result);
  }

  /** `first`: where its `length` bytes begin that direct I/O may use. */
  #alignedMemory(length: Bytes): { memory: Memory; first: Offset } {
    const memory = this.#aio.backend.memory(new Uint8Array(new SharedArrayBuffer(length + PREFERRED)));
    return { memory, first: alignUp(memory.address, PREFERRED) - memory.address };
  }

  /** Direct I/O cannot write the last bytes of a file that ends within a block: it ends with the block. */
  get #fills(): boolean {
    return this.#direct && !this.readOnly && this.#stat.kind === 'file';
  }

  /** Nothing has been written yet, or the file ends with a block already. */
  async #fill(): Promise<void> {
    const { size } = await this.#file.stat();
    const end = alignUp(size, this.#stat.alignment);
    if (end !== size) await this.#file.truncate(end);
  }

  info(): Record<string, unknown> {
    const { kind, allocated } = this.#stat;
    return { filename: this.#file.path, kind, allocated, direct: this.#direct, readOnly: this.readOnly };
  }

  /** Where there are locks the open file itself goes on, so that they are never let go of. */
  inactivate(): Record<string, unknown> {
    this.#locks?.lend();
    const identity = this.#file.fd >= 0 ? { identity: identityOf(this.#stat) } : {};
    return this.#locks && this.#file.fd >= 0 ? { ...identity, fd: this.#file.fd } : identity;
  }

  async activate(): Promise<void> {
    this.#forgetData();
    await this.#locks?.settle();
    // Whoever had it meanwhile may have made it longer.
    if (this.#fills) await this.#fill();
    this.length = (await this.#file.stat()).size;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  #forgetData(): void {
    this.#dataTo = 0;
    this.#dataFrom = 0;
  }

  async #run(start: (op: AioOp) => void): Promise<number> {
    const op = new WaitOp();
    for (;;) {
      const ended = op.wait();
      start(op);
      const result = await ended;
      if (result !== -Errno.EINTR && result !== -Errno.EAGAIN) return result;
    }
  }

  #failed(what: string, errno: number): BlockError {
    return ioError(errno, `Could not ${what} '${this.#file.path}'`, { path: this.#file.path });
  }
}

/** The file system or device does not do that, here at least. */
function isRefusal(result: number): boolean {
  return (
    result === -Errno.ENOTSUP ||
    result === -Errno.EINVAL ||
    result === -Errno.ENOSYS ||
    result === -Errno.ENODEV ||
    result === -Errno.EPERM
  );
}

const READ_ONLY_ERRNOS: ReadonlySet<number> = new Set([Errno.EACCES, Errno.EPERM, Errno.EROFS]);

/** With auto-read-only a file that may not be written is opened for reading. */
async function openFile(
  context: OpenContext,
  { filename: path, fd }: FileOptions,
): Promise<{ file: AioFile; readOnly: boolean }> {
  const direct = context.common.cache?.direct ?? false;
  const { backend } = context.aio;
  if (fd !== undefined) {
    return {
      file: await backend.openFile(path, { writable: !context.readOnly, direct, fd }),
      readOnly: context.readOnly,
    };
  }
  if (!context.readOnly) {
    try {
      return { file: await backend.openFile(path, { writable: true, direct }), readOnly: false };
    } catch (error) {
      const errno = error instanceof BlockError ? error.errno : 0;
      if (!context.common['auto-read-only'] || !READ_ONLY_ERRNOS.has(errno)) throw error;
    }
  }
  return { file: await backend.openFile(path, { writable: false, direct }), readOnly: true };
}

function refuse(path: string, errno: number, why = errnoText(errno)): BlockError {
  return new BlockError(errno, `Could not open '${path}': ${why}`, { where: { path, op: 'open' } });
}

/** Throws unless the file is one that can hold an image the way it is to be used. */
function checkFile(context: OpenContext, file: AioFile, stat: FileStat, device: boolean): void {
  const { path } = file;
  if (stat.kind === 'directory') throw refuse(path, Errno.EISDIR);
  if (stat.kind !== 'file' && stat.kind !== 'block') {
    throw refuse(path, Errno.EINVAL, 'neither a regular file nor a block device');
  }
  if (device && stat.kind !== 'block') throw refuse(path, Errno.EINVAL, "driver 'host_device' needs a block device");
  if (context.common.cache?.direct) assertDirect(context.aio, path);
}

function assertDirect({ backend }: AioContext, path: string): void {
  const probe = backend.memory(new Uint8Array(new SharedArrayBuffer(8)));
  if (probe.address !== 0) return;
  throw refuse(path, Errno.ENOTSUP, `cache.direct is not possible with the ${backend.name} backend`);
}

async function open(context: OpenContext, options: FileOptions, device: boolean): Promise<DriverNode> {
  const { filename, locking = 'auto' } = options;
  if (filename === '') throw refuse('', Errno.ENOENT);
  const { file, readOnly } = await openFile(context, options);
  try {
    const stat = await file.stat();
    checkFile(context, file, stat, device);
    if (options.identity !== undefined && options.identity !== identityOf(stat)) {
      throw refuse(filename, Errno.EAGAIN, 'it is another file than it was a moment ago');
    }
    if (locking === 'on' && !file.canLock) throw refuse(filename, Errno.ENOTSUP, 'it cannot be locked here');
    const locks = locking === 'off' || !file.canLock ? undefined : new ImageLocks(file, options.fd !== undefined);
    return new FileNode(context, file, stat, readOnly, locks);
  } catch (error) {
    await file.close();
    throw error;
  }
}

const OPTIONS: Readonly<Record<string, OptionSpec>> = {
  filename: { type: 'string', required: true, help: 'path of the file or device' },
  locking: { type: 'enum', values: ['auto', 'on', 'off'], help: 'locks against other processes (default auto)' },
  aio: { type: 'enum', values: ['threads', 'native', 'io_uring', 'ring', 'pool'], help: 'the context decides' },
  identity: { type: 'string', help: 'device and inode that the file must have, as DEV:INO' },
  fd: { type: 'number', help: 'descriptor of the open file, which is used in place of its name' },
};

export const fileDriver: Driver<FileOptions> = {
  name: 'file',
  role: 'protocol',
  options: OPTIONS,
  open: (context, options) => open(context, options, false),
};

export const hostDeviceDriver: Driver<FileOptions> = {
  name: 'host_device',
  role: 'protocol',
  options: OPTIONS,
  open: (context, options) => open(context, options, true),
};
