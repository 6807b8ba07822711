/** Files of a simulated world. An operation is one event: what it does to the disk happens when it ends. */
import { assert } from '../../base/assert.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { alignDown, type Bytes, isAligned, type Offset, SECTOR } from '../../base/units.ts';
import type { AioFile, AllocateMode, FileStat, OpenFileOptions } from '../backend.ts';
import { type AioOp, WaitOp } from '../op.ts';
import type { SimBackend, SimOwner } from './backend.ts';
import type { DiskChange, DiskFile } from './disk.ts';
import type { SimEvent } from './events.ts';
import type { Fate, FaultOp } from './faults.ts';
import { PAGE } from './pages.ts';

export async function openSimFile(backend: SimBackend, path: string, options: OpenFileOptions): Promise<AioFile> {
  const { sim } = backend;
  const fail = (errno: number): never => {
    throw new BlockError(errno, `Could not open '${path}': ${errnoText(errno)}`, { where: { path, op: 'open' } });
  };
  // A file is opened in a turn of its own, as everywhere.
  const op = new WaitOp();
  const opened = op.wait();
  sim.after(sim.latency('allocate'), () => op.complete(0));
  await opened;
  if (sim.disk.isDirectory(path)) fail(Errno.EISDIR);
  let file = sim.disk.files.get(path);
  if (file && options.create && options.exclusive) fail(Errno.EEXIST);
  if (!file && !options.create) fail(Errno.ENOENT);
  file ??= sim.disk.create(path);
  if (options.truncate && file.cached.size > 0) file.change({ kind: 'size', size: 0 });
  return new SimFile(backend, file, options);
}

interface Started {
  readonly op: FaultOp;
  readonly event: SimEvent;
}

/** What the journal is told of an operation: `change` gives null for a datasync. */
interface Noted {
  readonly change: () => DiskChange | null;
  readonly durable?: boolean;
}

class SimFile implements AioFile, SimOwner {
  readonly path: string;
  readonly fd = -1;
  readonly nativeFua = true;
  readonly canAllocate = true;
  readonly canLock = true;
  readonly #backend: SimBackend;
  readonly #file: DiskFile;
  readonly #writable: boolean;
  #direct: boolean;
  readonly #started = new Map<AioOp, Started>();
  #closed = false;

  constructor(backend: SimBackend, file: DiskFile, options: OpenFileOptions) {
    this.#backend = backend;
    this.#file = file;
    this.path = file.path;
    this.#writable = options.writable;
    this.#direct = options.direct === true;
  }

  read(op: AioOp, iov: Iov, at: Offset): void {
    this.#start(op, 'read', iov.length, null, (fate) => {
      if (!this.#aligned(iov, at)) return -Errno.EINVAL;
      if (fate.errno !== 0) return -fate.errno;
      const bytes = new Uint8Array(Math.min(iov.length, fate.limit));
      const count = this.#file.cached.read(at, bytes);
      return iov.copyFrom(bytes.subarray(0, count));
    });
  }

  write(op: AioOp, iov: Iov, at: Offset, durable: boolean): void {
    const change = (limit: Bytes): DiskChange & { kind: 'write' } => {
      const bytes = new Uint8Array(Math.min(iov.length, limit));
      iov.copyTo(bytes);
      return { kind: 'write', at, bytes };
    };
    const whole = (): DiskChange => change(iov.length);
    const journal = { change: whole, durable };
    this.#start(op, 'write', iov.length, journal, (fate) => {
      this.#file.inFlight.delete(whole);
      if (!this.#writable) return -Errno.EBADF;
      if (!this.#aligned(iov, at)) return -Errno.EINVAL;
      // A write that fails may have done part of its work, or all of it.
      const random = this.#backend.sim.prng;
      const part = fate.late ? iov.length : alignDown(random.below(iov.length + SECTOR), SECTOR);
      const limit = fate.errno === 0 ? fate.limit : part;
      const room = Math.min(limit, this.#room(at, iov.length));
      if (room > 0 && durable && fate.errno === 0) this.#file.changeDurably(at, change(room).bytes);
      else if (room > 0) this.#file.change(change(room));
      if (fate.errno !== 0) return -fate.errno;
      return room === 0 && iov.length > 0 ? -Errno.ENOSPC : room;
    });
    if (this.#started.has(op)) this.#file.inFlight.add(whole);
  }

  /** How many of `length` bytes from `at` find room on the disk. */
  #room(at: Offset, length: Bytes): Bytes {
    const { disk } = this.#backend.sim;
    if (disk.capacity === Infinity) return length;
    let free = disk.capacity - disk.used;
    for (let done = 0; done < length; ) {
      const take = Math.min(PAGE - ((at + done) % PAGE), length - done);
      free -= this.#file.cached.cost(at + done, take);
      if (free < 0) return done;
      done += take;
    }
    return length;
  }

  datasync(op: AioOp): void {
    const covers = this.#file.lastChange;
    this.#start(op, 'datasync', 0, { change: () => null }, (fate) => {
      if (fate.errno !== 0) {
        this.#file.failSync(covers, this.#backend.sim.prng);
        return -fate.errno;
      }
      this.#file.sync(covers);
      return 0;
    });
  }

  allocate(op: AioOp, mode: AllocateMode, at: Offset, length: Bytes): void {
    const change = (): DiskChange =>
      mode === 'allocate' ? { kind: 'reserve', at, length } : { kind: 'zero', at, length, punch: mode === 'punch' };
    this.#start(op, 'allocate', 0, { change }, (fate) => {
      if (fate.errno !== 0) return -fate.errno;
      if (!this.#writable) return -Errno.EBADF;
      if (mode !== 'allocate') {
        this.#file.change(change());
        return 0;
      }
      if (this.#room(at, length) < length) return -Errno.ENOSPC;
      // What is set aside matters only where room can run out.
      const { capacity } = this.#backend.sim.disk;
      if (capacity !== Infinity) this.#file.change(change());
      else if (at + length > this.#file.cached.size) this.#file.change({ kind: 'size', size: at + length });
      return 0;
    });
  }

  extent(at: Offset, limit: Bytes): number {
    return this.#file.cached.extent(at, limit);
  }

  async truncate(size: Bytes): Promise<void> {
    const op = new WaitOp();
    const ended = op.wait();
    const change = { kind: 'size', size } as const;
    this.#start(op, 'truncate', 0, { change: () => change }, (fate) => {
      if (fate.errno !== 0) return -fate.errno;
      if (!this.#writable) return -Errno.EINVAL;
      this.#file.change(change);
      return 0;
    });
    const result = await ended;
    if (result === 0) return;
    throw new BlockError(result, `Could not resize '${this.path}' to ${size} bytes: ${errnoText(result)}`, {
      where: { path: this.path, op: 'truncate' },
    });
  }

  async stat(): Promise<FileStat> {
    const { cached, ino } = this.#file;
    const alignment = this.#direct ? SECTOR : 1;
    return { kind: 'file', size: cached.size, allocated: cached.used, alignment, dev: 1, ino };
  }

  setDirect(direct: boolean): void {
    this.#direct = direct;
  }

  async lock(kind: 'read' | 'write' | 'none', at: Offset, length: Bytes): Promise<boolean> {
    return this.#file.lock(this, kind, at, length);
  }

  async testLock(kind: 'read' | 'write', at: Offset, length: Bytes): Promise<boolean> {
    return this.#file.testLock(this, kind, at, length);
  }

  async close(): Promise<void> {
    assert(this.#started.size === 0, `'${this.path}' was closed with operations in flight`);
    this.#closed = true;
    this.#file.unlockAll(this);
  }

  /** What the disk has begun it ends. */
  cancel(): void {}

  hurry(op: AioOp): void {
    const started = this.#started.get(op);
    if (!started) return;
    started.event.cancelled = true;
    started.event.run();
  }

  describe(op: AioOp): string {
    return `${this.#started.get(op)?.op ?? 'operation'} on '${this.path}'`;
  }

  #start(op: AioOp, kind: FaultOp, length: Bytes, noted: Noted | null, work: (fate: Fate) => number): void {
    const { sim } = this.#backend;
    assert(!this.#closed, `'${this.path}' was used after it was closed`);
    if (!this.#backend.begin(op, this)) return;
    const fate = sim.faults.decide(kind, length, this.path);
    const { journal } = sim.disk;
    const entry = noted === null ? undefined : journal?.begin(this.path, noted.change(), noted.durable === true);
    const event = sim.after(sim.latency(kind) + fate.delayNs, () => {
      this.#started.delete(op);
      const result = work(fate);
      if (entry) journal!.end(entry, result);
      this.#backend.end(op, result);
    });
    this.#started.set(op, { op: kind, event });
  }

  #aligned(iov: Iov, at: Offset): boolean {
    if (!this.#direct) return true;
    for (let i = 0; i < iov.count; i++) if (!isAligned(iov.lengths[i]!, SECTOR)) return false;
    return isAligned(at, SECTOR);
  }
}
