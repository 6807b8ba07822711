/**
 * For tests: what a guest's disk may hold after a crash. Each sector is a register: a write of it counts from when it
 * began, and takes those before it away only once a flush that began after its end has ended. Snapshots and the length
 * of the disk are on stable storage when their operation ends.
 */
import { type Bytes, type Offset, SECTOR } from '../../base/units.ts';

/** What a sector holds: 0 for zeroes, BACKING for what is below, else the number of the write. */
export type SectorValue = number;
export const BACKING: SectorValue = 1;
/** Neither: bytes that nobody has written there. */
export const GARBAGE: SectorValue = -1;
const WORDS = SECTOR / 4;

/** A range of the guest's disk that is looked at. */
export interface Region {
  readonly at: Offset;
  readonly length: Bytes;
}

/** Something that the guest does. Moments as in DiskJournal. */
export interface GuestOp {
  readonly began: number;
  /** Infinity until it has ended well. */
  ended: number;
  /** What it has written is on stable storage when it ends. */
  readonly stable?: boolean;
}

interface Write {
  readonly op: GuestOp;
  readonly value: SectorValue;
}

interface Snapshot {
  readonly name: string;
  readonly created: GuestOp;
  deleted: GuestOp | undefined;
  readonly size: Bytes;
  readonly values: ReadonlyMap<number, SectorValue>;
}

/** What was found on a disk. */
export interface GuestContent {
  readonly size: Bytes;
  readonly values: ReadonlyMap<number, SectorValue>;
}

const ALWAYS: GuestOp = { began: -1, ended: 0, stable: true };

/** Fills `target`, sectors from number `first` on, with what a write of that number puts there. One number in four is
 *  of the kind that does not compress. */
export function fillSectors(target: Uint8Array, first: number, valueAt: (sector: number) => SectorValue): void {
  const words = new Uint32Array(WORDS);
  const bytes = new Uint8Array(words.buffer);
  for (let at = 0; at < target.length; at += SECTOR) {
    fillWords(words, valueAt(first + at / SECTOR), first + at / SECTOR);
    target.set(bytes.subarray(0, Math.min(SECTOR, target.length - at)), at);
  }
}

function fillWords(words: Uint32Array, value: SectorValue, sector: number): void {
  words.fill(0);
  if (value === 0) return;
  let noise = (Math.imul(value, 0x9e37_79b1) ^ sector) | 1;
  for (let i = 0; i < WORDS; i += 2) {
    words[i] = value;
    words[i + 1] = sector;
    if (value % 4 !== 3 || i === 0) continue;
    noise = Math.imul(noise ^ (noise >>> 15), 0x2c1b_3c6d);
    words[i] = noise;
    words[i + 1] = noise ^ (noise << 13);
  }
}

const NOTHING = Buffer.alloc(SECTOR);
const wanted = new Uint32Array(WORDS);
const wantedBytes = Buffer.from(wanted.buffer);

/** What a sector holds, by its bytes. */
export function valueOfSector(bytes: Uint8Array, sector: number): SectorValue {
  if (NOTHING.equals(bytes)) return 0;
  const value = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  fillWords(wanted, value, sector);
  return wantedBytes.equals(bytes) ? value : GARBAGE;
}

/** The sectors of some regions, those behind the end of the disk left out. */
export function* sectorsOf(regions: readonly Region[], size: Bytes): Generator<number> {
  for (const { at, length } of regions) {
    for (let sector = at / SECTOR; sector < Math.min(at + length, size) / SECTOR; sector++) yield sector;
  }
}

export class GuestModel {
  readonly regions: readonly Region[];
  size: Bytes;
  /** As reads find it now, where no two writes went on at once. */
  readonly current = new Map<number, SectorValue>();
  readonly snapshots: Snapshot[] = [];
  /** Operations that change many refcounts. */
  readonly sharing: GuestOp[] = [];
  readonly #writes = new Map<number, Write[]>();
  readonly #flushes: GuestOp[] = [];
  readonly #sizes: { readonly op: GuestOp; readonly size: Bytes }[];

  /** `initial`: what is on stable storage when it begins. */
  constructor(regions: readonly Region[], initial: GuestContent) {
    this.regions = regions;
    this.size = initial.size;
    this.#sizes = [{ op: ALWAYS, size: initial.size }];
    for (const [sector, value] of initial.values) {
      this.current.set(sector, value);
      this.#writes.set(sector, [{ op: ALWAYS, value }]);
    }
  }

  /** A snapshot that is there when it begins. */
  addSnapshot(name: string, content: GuestContent): void {
    this.snapshots.push({ name, created: ALWAYS, deleted: undefined, ...content });
  }

  begin(moment: number): GuestOp {
    return { began: moment, ended: Infinity };
  }

  /** `op` puts `value` into the sectors of a range; sectors outside of the regions are not looked at. */
  write(op: GuestOp, at: Offset, length: Bytes, value: SectorValue | ((sector: number) => SectorValue)): void {
    const touched = this.regions.map((region) => {
      const from = Math.max(at, region.at);
      return { at: from, length: Math.min(at + length, region.at + region.length) - from };
    });
    for (const sector of sectorsOf(touched, Infinity)) {
      const put = typeof value === 'number' ? value : value(sector);
      const writes = this.#writes.get(sector);
      if (writes) writes.push({ op, value: put });
      else
        this.#writes.set(sector, [
          { op: ALWAYS, value: 0 },
          { op, value: put },
        ]);
      this.current.set(sector, put);
    }
  }

  flush(op: GuestOp): void {
    this.#flushes.push(op);
  }

  resize(op: GuestOp, size: Bytes): void {
    this.#sizes.push({ op, size });
    this.size = size;
  }

  createSnapshot(op: GuestOp, name: string): void {
    const values = new Map(this.current);
    this.snapshots.push({ name, created: op, deleted: undefined, size: this.size, values });
  }

  deleteSnapshot(op: GuestOp, name: string): void {
    this.alive(name)!.deleted = op;
  }

  alive(name?: string): Snapshot | undefined {
    return this.snapshots.find((one) => one.deleted === undefined && (name === undefined || one.name === name));
  }

  /** True in the middle of an operation that changes many refcounts. */
  shares(moment: number): boolean {
    return this.sharing.some(({ began, ended }) => began <= moment && moment < ended);
  }

  /** What is wrong with the disk found after a crash at `moment`; undefined when nothing is. */
  problem(moment: number, found: GuestContent): string | undefined {
    const sizes = this.#sizes.filter(({ op }) =>
      this.#counts(
        op,
        moment,
        this.#sizes.map((one) => one.op),
      ),
    );
    if (!sizes.some(({ size }) => size === found.size)) return `the disk has ${found.size} bytes`;
    for (const sector of sectorsOf(this.regions, found.size)) {
      const value = found.values.get(sector)!;
      const allowed = this.#allowed(sector, moment);
      if (allowed.includes(value)) continue;
      const those = [...new Set(allowed)].join(', ');
      return `sector ${sector} (byte ${sector * SECTOR}) holds ${value}, not one of ${those}`;
    }
    return undefined;
  }

  /** As problem(), of the snapshots; by their names. */
  snapshotProblem(moment: number, found: ReadonlyMap<string, GuestContent>): string | undefined {
    for (const { name, created, deleted, size, values } of this.snapshots) {
      const content = found.get(name);
      if (content === undefined) {
        if (created.ended <= moment && (deleted === undefined || deleted.began > moment)) return `'${name}' is gone`;
        continue;
      }
      if (created.began > moment) return `'${name}' was not yet created`;
      if (deleted !== undefined && deleted.ended <= moment) return `'${name}' is back`;
      if (content.size !== size) return `'${name}' has ${content.size} bytes, not ${size}`;
      for (const sector of sectorsOf(this.regions, size)) {
        const [is, was] = [content.values.get(sector)!, values.get(sector) ?? 0];
        if (is !== was) return `sector ${sector} (byte ${sector * SECTOR}) of '${name}' holds ${is}, not ${was}`;
      }
    }
    return undefined;
  }

  #allowed(sector: number, moment: number): SectorValue[] {
    const writes = this.#writes.get(sector);
    if (!writes) return [0];
    const flushed = writes.map(({ op }) => op).filter((op) => this.#flushed(op, moment));
    return writes.filter(({ op }) => this.#counts(op, moment, flushed)).map(({ value }) => value);
  }

  /** It may be what is there: it has begun, and nothing that is stable came after it. */
  #counts(op: GuestOp, moment: number, stable: readonly GuestOp[]): boolean {
    return (
      op.began <= moment && !stable.some((later) => later !== op && later.ended <= moment && later.began >= op.ended)
    );
  }

  #flushed(op: GuestOp, moment: number): boolean {
    return op.stable === true || this.#flushes.some((flush) => flush.ended <= moment && flush.began >= op.ended);
  }
}
