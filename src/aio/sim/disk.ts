/**
 * The simulated disk: files that outlive crashes. Every file has two images: what the running system sees (cached) and
 * what the medium holds (durable). A change goes to the first when it completes, and to the second with a datasync that
 * started later. A crash keeps, drops or tears each change that is not durable, independently of the others.
 */
import type { Prng } from '../../base/prng.ts';
import { type Bytes, MiB, type Offset, SECTOR } from '../../base/units.ts';
import type { DiskJournal } from './journal.ts';
import { PageStore } from './pages.ts';

/** Dirty bytes that a file may have before the oldest are written back, as any system does. */
const DIRTY_MAX = 64 * MiB;

export type DiskChange =
  | { readonly kind: 'write'; readonly at: Offset; readonly bytes: Uint8Array }
  | { readonly kind: 'zero'; readonly at: Offset; readonly length: Bytes; readonly punch: boolean }
  | { readonly kind: 'reserve'; readonly at: Offset; readonly length: Bytes }
  | { readonly kind: 'size'; readonly size: Bytes };

interface Dirty {
  readonly number: number;
  readonly change: DiskChange;
}

interface Lock {
  readonly owner: object;
  readonly kind: 'read' | 'write';
  readonly at: Offset;
  readonly end: Offset;
}

/** Does to the bytes of a file what a change does. */
export function apply(store: PageStore, change: DiskChange): void {
  if (change.kind === 'write') store.write(change.at, change.bytes);
  else if (change.kind === 'zero') store.zero(change.at, change.length, change.punch);
  else if (change.kind === 'reserve') store.reserve(change.at, change.length);
  else store.resize(change.size);
}

function weight(change: DiskChange): Bytes {
  return change.kind === 'write' ? change.bytes.length : 0;
}

export class DiskFile {
  readonly path: string;
  readonly ino: number;
  cached = new PageStore();
  durable = new PageStore();
  /** Writes that have started and not ended: a crash may have done part of them. */
  readonly inFlight = new Set<() => DiskChange>();
  #dirty: Dirty[] = [];
  #dirtyBytes = 0;
  #numbers = 0;
  #locks: Lock[] = [];

  constructor(path: string, ino: number) {
    this.path = path;
    this.ino = ino;
  }

  /** Number of the change that completed last: a datasync that starts now covers everything up to it. */
  get lastChange(): number {
    return this.#numbers;
  }

  /** Changes that a crash may take back. */
  get dirty(): number {
    return this.#dirty.length;
  }

  change(change: DiskChange): void {
    apply(this.cached, change);
    this.#dirty.push({ number: ++this.#numbers, change });
    this.#dirtyBytes += weight(change);
    while (this.#dirtyBytes > DIRTY_MAX) this.#settle([this.#dirty[0]!]);
  }

  /** Makes durable what completed up to `number`. */
  sync(number: number): void {
    this.#settle(this.#dirty.filter((dirty) => dirty.number <= number));
  }

  /** A datasync that failed: the system takes all of it for clean, and some of it never reached the medium. */
  failSync(number: number, prng: Prng): void {
    const covered = this.#dirty.filter((dirty) => dirty.number <= number);
    const reached = covered.filter(() => prng.chance(0.5));
    this.#settle(reached);
    this.#forget(covered);
  }

  /** A write that is durable when it completes, and with it what was dirty in the same place before. */
  changeDurably(at: Offset, bytes: Uint8Array): void {
    let low = at;
    let high = at + bytes.length;
    const older: Dirty[] = [];
    for (const dirty of [...this.#dirty].reverse()) {
      const { change } = dirty;
      const from = change.kind === 'size' ? 0 : change.at;
      const length = change.kind === 'write' ? change.bytes.length : change.kind === 'size' ? Infinity : change.length;
      if (from >= high || from + length <= low) continue;
      low = Math.min(low, from);
      high = Math.max(high, from + length);
      older.unshift(dirty);
    }
    this.#settle(older);
    this.#numbers++;
    const change: DiskChange = { kind: 'write', at, bytes };
    apply(this.cached, change);
    apply(this.durable, change);
  }

  #settle(changes: readonly Dirty[]): void {
    for (const { change } of changes) apply(this.durable, change);
    this.#forget(changes);
  }

  #forget(changes: readonly Dirty[]): void {
    const gone = new Set(changes);
    this.#dirty = this.#dirty.filter((dirty) => !gone.has(dirty));
    this.#dirtyBytes = this.#dirty.reduce((sum, dirty) => sum + weight(dirty.change), 0);
  }

  /** The file as a power failure now would leave it. */
  crash(prng: Prng): DiskFile {
    const after = new DiskFile(this.path, this.ino);
    after.durable = this.durable.clone();
    const open = [...this.#dirty.map((dirty) => dirty.change), ...[...this.inFlight].map((make) => make())];
    for (const change of open) {
      const fate = prng.below(3);
      if (fate === 0) continue;
      if (fate === 1 || change.kind !== 'write') apply(after.durable, change);
      else tear(after.durable, change.at, change.bytes, prng);
    }
    after.cached = after.durable.clone();
    return after;
  }

  /** OFD locks (fcntl(2)): a length of 0 reaches to the end of all offsets. */
  lock(owner: object, kind: 'read' | 'write' | 'none', at: Offset, length: Bytes): boolean {
    if (kind !== 'none' && this.testLock(owner, kind, at, length)) return false;
    const end = length === 0 ? Infinity : at + length;
    const kept: Lock[] = [];
    for (const lock of this.#locks) {
      if (lock.owner !== owner || lock.at >= end || lock.end <= at) {
        kept.push(lock);
        continue;
      }
      if (lock.at < at) kept.push({ ...lock, end: at });
      if (lock.end > end) kept.push({ ...lock, at: end });
    }
    if (kind !== 'none') kept.push({ owner, kind, at, end });
    this.#locks = kept;
    return true;
  }

  testLock(owner: object, kind: 'read' | 'write', at: Offset, length: Bytes): boolean {
    const end = length === 0 ? Infinity : at + length;
    return this.#locks.some(
      (lock) => lock.owner !== owner && lock.at < end && lock.end > at && (kind === 'write' || lock.kind === 'write'),
    );
  }

  unlockAll(owner: object): void {
    this.#locks = this.#locks.filter((lock) => lock.owner !== owner);
  }
}

/** Writes each sector of `bytes` or not. */
function tear(store: PageStore, at: Offset, bytes: Uint8Array, prng: Prng): void {
  for (let done = 0; done < bytes.length; ) {
    const take = Math.min(SECTOR - ((at + done) % SECTOR), bytes.length - done);
    if (prng.chance(0.5)) store.write(at + done, bytes.subarray(done, done + take));
    done += take;
  }
}

export class SimDisk {
  readonly files = new Map<string, DiskFile>();
  capacity: Bytes = Infinity;
  /** When set, it is told of every change. */
  journal: DiskJournal | undefined;
  #inodes = 1;

  /** Bytes that all files use. */
  get used(): Bytes {
    let used = 0;
    for (const file of this.files.values()) used += file.cached.used;
    return used;
  }

  create(path: string): DiskFile {
    const file = new DiskFile(path, this.#inodes++);
    this.files.set(path, file);
    return file;
  }

  /** Folders are not kept: a path is one when a file is below it. */
  isDirectory(path: string): boolean {
    for (const name of this.files.keys()) if (name.startsWith(`${path}/`)) return true;
    return false;
  }

  /** Makes a file of `bytes`, durable, as if it had always been there. */
  put(path: string, bytes: Uint8Array): void {
    const file = this.create(path);
    file.cached.write(0, bytes);
    file.durable.write(0, bytes);
  }

  /** The whole file as the running system sees it. */
  get(path: string): Uint8Array | undefined {
    const file = this.files.get(path);
    if (!file) return undefined;
    const bytes = new Uint8Array(file.cached.size);
    file.cached.read(0, bytes);
    return bytes;
  }

  /** The disk as a power failure now would leave it. This one goes on unharmed, so that many ends can be tried. */
  crash(prng: Prng): SimDisk {
    const after = new SimDisk();
    after.capacity = this.capacity;
    after.#inodes = this.#inodes;
    for (const [path, file] of this.files) after.files.set(path, file.crash(prng));
    return after;
  }
}
