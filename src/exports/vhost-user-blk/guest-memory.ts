/**
 * The guest's memory: the regions that the front-end has shared, and what an address of the guest is in them.
 *
 * JavaScript touches a mapping only when its file cannot shrink (a sealed memfd): a page that is gone would kill the
 * process. Everything else is {@link GuestMemory.guarded}: the kernel copies, and answers EFAULT where nothing is.
 */
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import type { Bytes } from '../../base/units.ts';
import { carefulRead, carefulWrite } from '../../native/careful-copy.ts';
import { fstat, isShmem } from '../../native/file.ts';
import { addSeals, getSeals, Seal } from '../../native/mmap.ts';
import { WINDOW_BYTES, WINDOW_OVERLAP, Window } from '../../native/window.ts';
import type { MemoryRegion } from '../../proto/vhost-user/message.ts';

/** What SPDK and QEMU allow too: 8 regions in a table, and slots that come and go. */
export const MAX_REGIONS = 509;
/** 1 TiB in windows of 1 GiB; address space, not memory. */
const MAX_WINDOWS = 1024;
const MAX_ADDRESS = 2 ** 52;
const TWO_32 = 0x1_0000_0000;

/** Part of a region. It is the memory of the runs in it. */
class GuestWindow implements Memory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  readonly window: Window;
  readonly region: MemoryRegion;
  /** Guest addresses that are looked up here, from `guest` on; `shown` may be more. */
  readonly guest: number;
  readonly length: Bytes;
  readonly shown: Bytes;

  constructor(window: Window, region: MemoryRegion, from: Bytes, shown: Bytes) {
    this.window = window;
    this.bytes = window.bytes;
    this.view = window.view;
    this.address = window.address;
    this.region = region;
    this.guest = region.guest + from;
    this.length = Math.min(WINDOW_BYTES, region.length - from);
    this.shown = shown;
  }
}

/** The guest address of byte `at` of a run's memory. */
export function guestAddressOf(memory: Memory, at: number): number {
  const window = memory as GuestWindow;
  return window.guest + at - window.window.skip;
}

/** Bytes that lie in one piece. */
export interface Span {
  readonly memory: Memory;
  readonly at: number;
}

/** True when the file cannot become smaller, now that it was asked not to. A page of it can then be missing only for
 *  want of memory. */
export function cannotShrink(fd: number): boolean {
  if (!isShmem(fd)) return false;
  const seals = getSeals(fd);
  return seals >= 0 && ((seals & Seal.SHRINK) !== 0 || addSeals(fd, Seal.SHRINK) === 0);
}

export class GuestMemory {
  readonly #regions: MemoryRegion[] = [];
  /** By guest address. */
  readonly #windows: GuestWindow[] = [];
  readonly #guardedRegions = new Set<MemoryRegion>();
  #last: GuestWindow | null = null;

  /** True while one region's file may shrink. */
  get guarded(): boolean {
    return this.#guardedRegions.size > 0;
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** Maps a region; the caller closes `fd`. Throws BlockError. */
  add(region: MemoryRegion, fd: number): void {
    this.#check(region, fd);
    const windows: GuestWindow[] = [];
    for (let from = 0; from < region.length; from += WINDOW_BYTES) {
      const shown = Math.min(WINDOW_BYTES + WINDOW_OVERLAP, region.length - from);
      const window = Window.of(fd, region.offset + from, shown);
      if (typeof window === 'number') {
        for (const { window: mapped } of windows) mapped.release();
        throw this.#refusal(region, window, errnoText(window));
      }
      windows.push(new GuestWindow(window, region, from, shown));
    }
    this.#regions.push(region);
    if (!cannotShrink(fd)) this.#guardedRegions.add(region);
    this.#windows.push(...windows);
    this.#windows.sort((a, b) => a.guest - b.guest);
  }

  #refusal(region: MemoryRegion, errno: number, why: string): BlockError {
    return new BlockError(errno, `Could not map ${region.length} bytes of guest memory at ${region.guest}: ${why}`);
  }

  #check(region: MemoryRegion, fd: number): void {
    const { guest, user, length, offset } = region;
    const refuse = (why: string): never => {
      throw this.#refusal(region, Errno.EINVAL, why);
    };
    if (length === 0) refuse('the length is 0');
    if (guest + length > MAX_ADDRESS || user + length > MAX_ADDRESS) refuse('the address is too large');
    if (this.#regions.length >= MAX_REGIONS) refuse(`there are ${MAX_REGIONS} regions already`);
    if (this.#windows.length + Math.ceil(length / WINDOW_BYTES) > MAX_WINDOWS) refuse('that is more than 1 TiB in all');
    for (const other of this.#regions) {
      if (guest < other.guest + other.length && other.guest < guest + length) refuse('it overlaps another region');
      if (user < other.user + other.length && other.user < user + length) refuse('it overlaps another region');
    }
    const stat = fstat(fd);
    if (typeof stat === 'number') throw this.#refusal(region, stat, errnoText(stat));
    if (stat.kind !== 'file') refuse('its descriptor is no file');
    if (offset + length > stat.size) refuse(`its file has ${stat.size} bytes only`);
  }

  /** Takes back a region that {@link add} has taken; false when there is none such. Nothing may use it any more. */
  remove({ guest, user, length }: MemoryRegion): boolean {
    const at = this.#regions.findIndex((r) => r.guest === guest && r.user === user && r.length === length);
    if (at < 0) return false;
    const [region] = this.#regions.splice(at, 1);
    this.#guardedRegions.delete(region!);
    for (let i = this.#windows.length - 1; i >= 0; i--) {
      if (this.#windows[i]!.region !== region) continue;
      this.#windows[i]!.window.release();
      this.#windows.splice(i, 1);
    }
    this.#last = null;
    return true;
  }

  /** Takes all back. */
  clear(): void {
    for (const region of [...this.#regions]) this.remove(region);
  }

  /** Adds the runs of `length` bytes at a guest address, given as two halves, to `iov`. False when not all of it is
   *  there; then some may have been added. */
  translate(high: number, low: number, length: Bytes, iov: Iov): boolean {
    let address = (high >>> 0) * TWO_32 + (low >>> 0);
    let left = length;
    while (left > 0) {
      const window = this.#find(address);
      if (window === null) return false;
      const from = address - window.guest;
      const take = Math.min(left, window.shown - from);
      iov.push(window, window.window.skip + from, take);
      address += take;
      left -= take;
    }
    return left === 0;
  }

  #find(address: number): GuestWindow | null {
    const last = this.#last;
    if (last !== null && address >= last.guest && address < last.guest + last.length) return last;
    const windows = this.#windows;
    let low = 0;
    let high = windows.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (windows[middle]!.guest <= address) low = middle + 1;
      else high = middle;
    }
    const window = low > 0 ? windows[low - 1]! : null;
    if (window === null || address >= window.guest + window.length) return null;
    this.#last = window;
    return window;
  }

  /** Where `length` bytes at an address of the front-end's are, in one piece; undefined when they are not. */
  spanOfUser(user: number, length: Bytes): Span | undefined {
    for (const window of this.#windows) {
      const from = user - window.region.user - (window.guest - window.region.guest);
      if (from >= 0 && from < window.length && from + length <= window.shown) {
        return { memory: window, at: window.window.skip + from };
      }
    }
    return undefined;
  }
}

/** Copies out of guarded memory. 0 or a negative errno. */
export function pull(span: Span, target: Memory, targetAt: number, length: Bytes): number {
  return carefulRead(span.memory.address + span.at, target, targetAt, length);
}

/** Copies into guarded memory. 0 or a negative errno. */
export function push(span: Span, source: Memory, sourceAt: number, length: Bytes, skip = 0): number {
  return carefulWrite(span.memory.address + span.at + skip, source, sourceAt, length);
}

/** Copies all runs of guarded memory into `target`, or, with `out`, `target` into them. 0 or a negative errno. */
export function copyRuns(iov: Iov, target: Memory, out: boolean): number {
  let at = 0;
  for (let i = 0; i < iov.count; i++) {
    const address = iov.memories[i]!.address + iov.offsets[i]!;
    const length = iov.lengths[i]!;
    const result = out ? carefulWrite(address, target, at, length) : carefulRead(address, target, at, length);
    if (result < 0) return result;
    at += length;
  }
  return 0;
}
