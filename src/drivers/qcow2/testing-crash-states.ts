/**
 * For tests: the states in which a crash may leave the files of a simulated disk, from the journal of what was done to
 * them. What had ended before a datasync began is stable once that datasync has ended; of everything else each change
 * is there, is missing, or is torn, independently of the others.
 */
import { createHash } from 'node:crypto';
import { apply } from '../../aio/sim/disk.ts';
import type { DiskJournal, JournalEntry } from '../../aio/sim/journal.ts';
import { PageStore } from '../../aio/sim/pages.ts';
import type { Prng } from '../../base/prng.ts';
import { type Bytes, KiB, SECTOR } from '../../base/units.ts';

/** Which parts of a write have reached the medium: prefix, suffix, or each piece by chance. */
interface Tear {
  readonly unit: Bytes;
  readonly how: 'prefix' | 'suffix' | 'pieces';
  /** Where to cut, 0..1; for pieces a seed. */
  readonly where: number;
}

type Fate = 'missing' | 'whole' | Tear;

/** A state that may be looked at, not built yet. */
export interface CrashPoint {
  readonly moment: number;
  /** In words, so that the state can be made again. */
  readonly what: string;
  /** Of a kind that is never left out. */
  readonly must: boolean;
  /** Of the entries that are not stable at that moment, by their number. */
  readonly fates: ReadonlyMap<number, Fate>;
}

export interface CrashState {
  readonly point: CrashPoint;
  readonly files: ReadonlyMap<string, PageStore>;
  /** Same hash, same bytes. */
  readonly hash: string;
}

const NOTHING = Buffer.alloc(4 * KiB);
const UNITS = [SECTOR, 4 * KiB];

/** Stable at the end of a datasync that covers it: when that is, for every entry. */
function stableMoments(entries: readonly JournalEntry[]): number[] {
  const syncs = entries.filter((entry) => entry.change === null && !entry.failed && entry.ended < Infinity);
  return entries.map((entry) => {
    if (entry.change === null || entry.failed) return Infinity;
    if (entry.durable) return entry.ended;
    const covering = syncs.filter((sync) => sync.path === entry.path && sync.began >= entry.ended);
    return Math.min(...covering.map((sync) => sync.ended));
  });
}

/** The states of a journal, in the order of time. `subsets`: random ones for each moment. */
export function crashPoints(journal: DiskJournal, prng: Prng, subsets: number): CrashPoint[] {
  const { entries } = journal;
  const stable = stableMoments(entries);
  const points: CrashPoint[] = [];
  const seen = new Set<string>();
  // Just before the disk does the next thing: by then the guest has been told the most.
  const happens = new Set(entries.flatMap(({ began, ended }) => [began, ended]));
  for (let moment = 0; moment <= journal.moment; moment++) {
    if (moment < journal.moment && !happens.has(moment + 1)) continue;
    const open = [...entries.keys()].filter(
      (i) => entries[i]!.change !== null && entries[i]!.began <= moment && stable[i]! > moment,
    );
    const base = stable.filter((at) => at <= moment).length;
    const add = (what: string, must: boolean, fateOf: (i: number) => Fate): void => {
      const fates = new Map(open.map((i) => [i, fateOf(i)] as const).filter(([, fate]) => fate !== 'missing'));
      const key = `${base} ${JSON.stringify([...fates])}`;
      if (seen.has(key)) return;
      seen.add(key);
      points.push({ moment, what: `${what} at moment ${moment}`, must, fates });
    };
    const ended = (i: number): boolean => entries[i]!.ended <= moment;
    const last = open.at(-1);
    add('only what is stable', true, () => 'missing');
    add('all that had ended', false, (i) => (ended(i) ? 'whole' : 'missing'));
    add('all that had begun', false, () => 'whole');
    for (const unit of UNITS) {
      if (last === undefined) break;
      const how = prng.pick(['prefix', 'suffix', 'pieces'] as const);
      const tear = { unit, how, where: prng.float() };
      add(`the last write torn (${how} of ${unit})`, false, (i) =>
        i === last ? tear : ended(i) ? 'whole' : 'missing',
      );
    }
    for (let n = 0; n < subsets; n++) add(`random subset ${n}`, false, () => randomFate(prng));
  }
  return points;
}

function randomFate(prng: Prng): Fate {
  const fate = prng.below(4);
  if (fate === 0) return 'whole';
  if (fate > 1) return fate === 2 ? 'missing' : prng.pick(['missing', 'whole']);
  return { unit: prng.pick(UNITS), how: prng.pick(['prefix', 'suffix', 'pieces'] as const), where: prng.float() };
}

/** Builds states out of points that come in the order of time. */
export class CrashReplay {
  readonly #entries: readonly JournalEntry[];
  readonly #stable: readonly number[];
  /** Numbers of entries, in the order in which they were done. */
  readonly #order: readonly number[];
  readonly #files = new Map<string, PageStore>();
  #moment = -1;

  /** `files`: as they were when the journal began. */
  constructor(files: ReadonlyMap<string, Uint8Array>, journal: DiskJournal) {
    this.#entries = journal.entries;
    this.#stable = stableMoments(journal.entries);
    const ended = (i: number): number => this.#entries[i]!.ended;
    this.#order = [...this.#entries.keys()].sort((a, b) => (ended(a) === ended(b) ? a - b : ended(a) - ended(b)));
    for (const [path, bytes] of files) {
      const store = new PageStore();
      store.write(0, bytes);
      this.#files.set(path, store);
    }
  }

  build(point: CrashPoint): CrashState {
    for (const i of this.#order) {
      const at = this.#stable[i]!;
      if (at > this.#moment && at <= point.moment) this.#apply(this.#files, i, 'whole');
    }
    this.#moment = point.moment;
    const files = new Map([...this.#files].map(([path, store]) => [path, store.clone()] as const));
    for (const i of this.#order) {
      const fate = point.fates.get(i);
      if (fate !== undefined) this.#apply(files, i, fate);
    }
    return { point, files, hash: digest(files) };
  }

  #apply(files: ReadonlyMap<string, PageStore>, i: number, fate: Fate): void {
    const { path, change } = this.#entries[i]!;
    const store = files.get(path)!;
    if (change === null || fate === 'missing') return;
    if (fate === 'whole' || change.kind !== 'write') apply(store, change);
    else tear(store, change.at, change.bytes, fate);
  }
}

/** Pieces are aligned in the file, as those of a medium are. */
function tear(store: PageStore, at: number, bytes: Uint8Array, { unit, how, where }: Tear): void {
  const first = Math.floor(at / unit);
  const count = Math.ceil((at + bytes.length) / unit) - first;
  const cut = Math.floor(where * (count + 1));
  let chance = Math.floor(where * 2 ** 32) | 1;
  for (let piece = 0; piece < count; piece++) {
    chance = Math.imul(chance ^ (chance >>> 15), 0x2c1b_3c6d) ^ piece;
    const there = how === 'prefix' ? piece < cut : how === 'suffix' ? piece >= cut : (chance & 8) !== 0;
    if (!there) continue;
    const from = Math.max(0, (first + piece) * unit - at);
    store.write(at + from, bytes.subarray(from, (first + piece + 1) * unit - at));
  }
}

/** Calls `visit` with the parts of a file that hold something. */
export function eachExtent(store: PageStore, visit: (at: number, bytes: Uint8Array) => void): void {
  for (let at = 0; at < store.size; ) {
    const extent = store.extent(at, store.size - at);
    if (extent > 0) {
      const bytes = new Uint8Array(extent);
      store.read(at, bytes);
      visit(at, bytes);
    }
    at += Math.abs(extent);
  }
}

function digest(files: ReadonlyMap<string, PageStore>): string {
  const hash = createHash('sha1');
  for (const [path, store] of files) {
    hash.update(`${path} ${store.size} `);
    const place = new Float64Array(1);
    eachExtent(store, (at, bytes) => {
      for (let from = 0; from < bytes.length; from += 4 * KiB) {
        const page = bytes.subarray(from, from + 4 * KiB);
        if (NOTHING.subarray(0, page.length).equals(page)) continue;
        place[0] = at + from;
        hash.update(new Uint8Array(place.buffer)).update(page);
      }
    });
  }
  return hash.digest('hex');
}
