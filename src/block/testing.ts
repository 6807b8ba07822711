/** For tests: a protocol driver over memory that can be held up, cut short and made to fail, and a format over it. */
import type { AioContext } from '../aio/context.ts';
import { type AioOp, Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockBackend } from './backend.ts';
import type { Driver, DriverNode, Limits, OpenContext, StatusResult, Supported } from './driver.ts';
import { registerDriver } from './registry.ts';
import { BlockRequest, RequestKind } from './request.ts';

const UNTIL_MS_MAX = 20_000;

export type DiskOp = 'read' | 'write' | 'zero' | 'discard' | 'flush' | 'truncate' | 'status' | 'open' | 'close';

/** What a memory node reads and writes, and how it misbehaves. */
export class TestDisk {
  bytes: Uint8Array;
  /** 'write 512+1024' and so on, in the order of starting. */
  readonly log: string[] = [];
  limits: Partial<Limits> = {};
  style: 'callback' | 'coroutine' = 'callback';
  nativeFua = false;
  growing = true;
  /** It turns out at open that it can only be read. */
  readOnly = false;
  /** What the driver does not have. */
  readonly missing = new Set<'zero' | 'discard' | 'flush' | 'status' | 'truncate'>();
  /** Answers 'unsupported' to zero and discard. */
  unsupported = false;
  /** Results of the next operations of a kind, in the order of starting: an errno, or bytes for a short one. */
  readonly script: { op: DiskOp; errno?: number; short?: number }[] = [];
  readonly #held = new Map<DiskOp, { readonly gates: Gate[]; left: number }>();
  permissions: (perm: number, shared: number) => void = () => undefined;
  closed = false;

  constructor(size: number) {
    this.bytes = new Uint8Array(size);
  }

  /** Operations of that kind wait from now on: the next `count`, or all. */
  hold(op: DiskOp, count = Number.POSITIVE_INFINITY): void {
    this.#held.set(op, { gates: [], left: count });
  }

  /** How many wait. */
  waiting(op: DiskOp): number {
    return this.#held.get(op)?.gates.length ?? 0;
  }

  /** The first `count` that wait go on; without a count all, and the hold ends. */
  release(op: DiskOp, count?: number): void {
    const gates = this.#held.get(op)?.gates ?? [];
    for (const gate of gates.splice(0, count ?? gates.length)) gate.open();
    if (count === undefined) this.#held.delete(op);
  }

  gate(op: DiskOp): Promise<void> | undefined {
    const held = this.#held.get(op);
    if (!held || held.left === 0) return undefined;
    held.left--;
    const gate = new Gate();
    held.gates.push(gate);
    return gate.promise;
  }

  take(op: DiskOp): { errno?: number; short?: number } {
    const index = this.script.findIndex((entry) => entry.op === op);
    return index < 0 ? {} : this.script.splice(index, 1)[0]!;
  }

  ensure(size: number): void {
    if (size <= this.bytes.length) return;
    const more = new Uint8Array(size);
    more.set(this.bytes);
    this.bytes = more;
  }
}

const disks = new Map<string, TestDisk>();

/** A disk that the options `{ driver: 'memory', disk: name }` refer to. */
export function testDisk(name: string, size: number): TestDisk {
  const disk = new TestDisk(size);
  disks.set(name, disk);
  return disk;
}

class MemoryNode implements DriverNode {
  readonly #aio: AioContext;
  readonly #disk: TestDisk;
  readonly limits: Partial<Limits>;
  readonly nativeFua: boolean;
  readonly readOnly: boolean;
  length: Bytes;

  constructor(aio: AioContext, disk: TestDisk) {
    this.#aio = aio;
    this.#disk = disk;
    this.length = disk.bytes.length;
    this.limits = disk.limits;
    this.nativeFua = disk.nativeFua;
    this.readOnly = disk.readOnly;
    const self = this as DriverNode;
    if (disk.style === 'callback') {
      self.preadv = undefined as never;
      self.pwritev = undefined as never;
    } else {
      self.submitRead = undefined as never;
      self.submitWrite = undefined as never;
    }
    for (const name of disk.missing) self[name] = undefined as never;
    if (!disk.growing) self.grew = undefined as never;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    this.#transfer('read', op, iov, at, '');
  }

  submitWrite(op: AioOp, iov: Iov, at: Offset, flags: number): void {
    this.#transfer('write', op, iov, at, flags === 0 ? '' : ` flags ${flags}`);
  }

  #transfer(kind: 'read' | 'write', op: AioOp, iov: Iov, at: Offset, more: string): void {
    const disk = this.#disk;
    disk.log.push(`${kind} ${at}+${iov.length}${more}`);
    const { errno, short } = disk.take(kind);
    const held = disk.gate(kind);
    const finish = (): void => {
      if (errno !== undefined) this.#aio.completeLater(op, -errno);
      else this.#aio.completeLater(op, this.#move(kind, iov.slice(0, short ?? iov.length), at));
    };
    if (held) void held.then(finish);
    else finish();
  }

  #move(kind: 'read' | 'write', iov: Iov, at: Offset): number {
    const disk = this.#disk;
    if (kind === 'read') {
      return iov.copyFrom(disk.bytes.subarray(Math.min(at, disk.bytes.length), at + iov.length));
    }
    disk.ensure(at + iov.length);
    return iov.copyTo(disk.bytes.subarray(at, at + iov.length));
  }

  async #step(kind: DiskOp, text: string): Promise<void> {
    const disk = this.#disk;
    disk.log.push(text);
    const { errno } = disk.take(kind);
    await disk.gate(kind);
    if (errno !== undefined) throw new BlockError(errno, `Could not ${text}: scripted`);
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    await this.#step('read', `read ${at}+${iov.length}`);
    this.#move('read', iov, at);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    await this.#step('write', `write ${at}+${iov.length}${flags === 0 ? '' : ` flags ${flags}`}`);
    this.#move('write', iov, at);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    await this.#step('zero', `zero ${at}+${length} flags ${flags}`);
    if (this.#disk.unsupported) return 'unsupported';
    this.#disk.ensure(at + length);
    this.#disk.bytes.fill(0, at, at + length);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    await this.#step('discard', `discard ${at}+${length}`);
    return this.#disk.unsupported ? 'unsupported' : 'done';
  }

  async flush(): Promise<void> {
    await this.#step('flush', 'flush');
  }

  status(at: Offset, want: Bytes, out: StatusResult): void {
    const { bytes } = this.#disk;
    const block = 4096;
    const zeroAt = (from: number): boolean => bytes.subarray(from, from + block).every((byte) => byte === 0);
    const first = at - (at % block);
    const zero = zeroAt(first);
    let stop = first + block;
    while (stop < at + want && zeroAt(stop) === zero) stop += block;
    out.kind = zero ? 'zero' : 'data';
    out.length = Math.min(stop - at, want);
  }

  async truncate(length: Bytes): Promise<void> {
    await this.#step('truncate', `truncate ${length}`);
    const next = new Uint8Array(length);
    next.set(this.#disk.bytes.subarray(0, length));
    this.#disk.bytes = next;
    this.length = length;
  }

  grew(end: Offset): void {
    if (end > this.length) this.length = end;
  }

  permissions(perm: number, shared: number): void {
    this.#disk.permissions(perm, shared);
  }

  close(): void {
    this.#disk.log.push('close');
    this.#disk.closed = true;
    const { errno } = this.#disk.take('close');
    if (errno !== undefined) throw new BlockError(errno, 'Could not close: scripted');
  }
}

export const memoryDriver: Driver<{ disk: string }> = {
  name: 'memory',
  role: 'protocol',
  options: { disk: { type: 'string', required: true, help: 'name of the test disk' } },
  open(context: OpenContext, options: { disk: string }): DriverNode {
    const disk = disks.get(options.disk);
    if (!disk) throw new BlockError(Errno.ENOENT, `Could not open test disk '${options.disk}'`);
    const { errno } = disk.take('open');
    if (errno !== undefined) throw new BlockError(errno, `Could not open test disk '${options.disk}': scripted`);
    disk.closed = false;
    return new MemoryNode(context.aio, disk);
  },
};

export function registerTestDrivers(): void {
  registerDriver(memoryDriver);
}

/** Memory with `length` bytes of a pattern that depends on `seed`. */
export function testMemory(context: AioContext, length: number, seed = 0): Memory {
  const bytes = new Uint8Array(new SharedArrayBuffer(length));
  for (let i = 0; i < length; i++) bytes[i] = (seed * 31 + i * 7 + (i >> 8)) & 0xff;
  return context.backend.memory(bytes);
}

/** An iov over new memory with that pattern, in runs of the given lengths. */
export function testIov(context: AioContext, runs: number[], seed = 0): Iov {
  const memory = testMemory(
    context,
    runs.reduce((a, b) => a + b, 0),
    seed,
  );
  const iov = new Iov();
  let at = 0;
  for (const run of runs) {
    iov.push(memory, at, run);
    at += run;
  }
  return iov;
}

/** What an iov holds. */
export function bytesOf(iov: Iov): Uint8Array {
  const bytes = new Uint8Array(iov.length);
  iov.copyTo(bytes);
  return bytes;
}

/**
 * Waits until `condition` holds; every other thing that is ready runs in between. Bounded by the clock: some conditions
 * wait for it, and how many turns that takes depends on the machine.
 */
export async function until(condition: () => boolean, what = 'the condition'): Promise<void> {
  for (const begin = performance.now(); !condition(); ) {
    if (performance.now() - begin > UNTIL_MS_MAX) throw new Error(`waited too long for ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Lets everything that is ready run. */
export async function settle(turns = 6): Promise<void> {
  for (let i = 0; i < turns; i++) await new Promise((resolve) => setImmediate(resolve));
}

class Hint extends BlockRequest {
  readonly gate = new Gate<number>();
  override kind: number = RequestKind.CACHE;
  done(error: number): void {
    this.gate.open(error);
  }
}

/** Says that a range will be read soon; the result, 0 or a negative errno. */
export async function hint(blk: BlockBackend, at: number, length: number): Promise<number> {
  const request = Object.assign(new Hint(), { at, length });
  blk.submit(request);
  return await request.gate.promise;
}
