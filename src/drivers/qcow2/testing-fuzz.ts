/** For tests: one image, and a row of random operations on it. */
import assert from 'node:assert/strict';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Prng } from '../../base/prng.ts';
import { type Bytes, GiB, KiB, MiB, type Offset, SECTOR } from '../../base/units.ts';
import { type Change, type ImagePlan, placesOf, type TestImage } from './testing-image.ts';
import { isPossible, planOfRow, SETTING_COUNTS } from './testing-plans.ts';

const SNAPSHOTS_MAX = 3;
/** Of a request that writes bytes; more only takes more time. */
const BYTES_MAX = 512 * KiB;
/** What qemu-io takes in one request. */
const PEER_MAX = GiB;

/** Options of our node; small caches make for evictions. */
const NODES: readonly Readonly<Record<string, unknown>>[] = [
  {},
  { 'l2-cache-size': 1, 'refcount-cache-size': 1, 'l2-cache-entry-size': 512 },
  { 'l2-cache-size': 1, 'refcount-cache-size': 1 },
  { 'detect-zeroes': 'unmap' },
  { 'pass-discard-other': true, 'pass-discard-request': false },
];

export function randomPlan(prng: Prng): ImagePlan {
  for (;;) {
    // Half of the settings are the first ones, or nearly all rows would be impossible.
    const row = SETTING_COUNTS.map((count) => (prng.chance(0.5) ? 0 : prng.below(count)));
    if (isPossible(row)) return { ...planOfRow(row), node: prng.pick(NODES) };
  }
}

export class Fuzzer {
  readonly #prng: Prng;
  readonly #image: TestImage;
  readonly #places: readonly Offset[];
  /** What was done, for the message of a failure. */
  readonly log: string[] = [];
  #seed = 0;
  #names = 0;

  constructor(prng: Prng, image: TestImage) {
    this.#prng = prng;
    this.#image = image;
    this.#places = placesOf(image.plan);
  }

  async run(steps: number): Promise<void> {
    for (let step = 0; step < steps; step++) await this.#step();
    await this.#verify();
    await this.#note('verify snapshots', () => this.#image.verifySnapshots());
  }

  async #step(): Promise<void> {
    const prng = this.#prng;
    const image = this.#image;
    const dice = prng.below(100);
    if (image.model.length === 0 && dice < 90) return this.#resize();
    if (dice < 45) await this.#request(this.#change());
    else if (dice < 70) await this.#batch();
    else if (dice < 75) await this.#note('flush', async () => (await image.open()).flush());
    else if (dice < 79) await this.#note('reopen', () => image.close());
    else if (dice < 83) await this.#theirs();
    else if (dice < 90) await this.#snapshot();
    else if (dice < 94) await this.#resize();
    else if (dice < 95) await this.#amend();
    else await this.#verify();
  }

  async #note<T>(what: string, work: () => Promise<T>): Promise<T> {
    this.log.push(what);
    return work();
  }

  async #request(change: Change): Promise<void> {
    await this.#note(describe(change), () => this.#image.ours(change));
    const { at, length, bytes } = this.#image.outcome(change);
    if (length > BYTES_MAX || length === 0) return;
    const found = await this.#image.read(at, length);
    if (bytes === 'zeroes')
      assert.ok(
        found.every((byte) => byte === 0),
        'it reads back as zeroes',
      );
    else assert.ok(Buffer.compare(found, bytes) === 0, 'it reads back as it was written');
  }

  /** Requests at the same time. Where they overlap, each byte is one of theirs; where not, the one of the only one. */
  async #batch(): Promise<void> {
    const prng = this.#prng;
    const image = this.#image;
    const place = this.#place();
    const changes = Array.from({ length: prng.between(2, 9) }, () =>
      this.#change(prng.chance(0.8) ? place : undefined),
    );
    const small = changes.filter(({ length }) => length <= 4 * BYTES_MAX);
    this.log.push(`at once: ${small.map(describe).join('; ')}`);
    const blk = await image.open();
    const reads = small.filter(() => prng.chance(0.3));
    const works: Promise<unknown>[] = small.map((change) => image.request(change));
    const seen = reads.map(({ at, length }) => image.read(at, length));
    if (prng.chance(0.3)) works.push(blk.flush());
    await Promise.all([...works, ...seen]);
    for (const [i, { at, length }] of reads.entries()) this.#assertOneOf(at, length, await seen[i]!, small, true);
    const adopted: (readonly [Offset, Uint8Array])[] = [];
    for (const { at, length } of small) {
      const found = await image.read(at, length);
      this.#assertOneOf(at, length, found, small, false);
      adopted.push([at, found]);
    }
    for (const [at, found] of adopted) image.model.write(at, found);
  }

  #assertOneOf(at: Offset, length: Bytes, found: Uint8Array, changes: readonly Change[], mayBeOld: boolean): void {
    const old = this.#image.model.read(at, length);
    const allowed = new Uint8Array(length);
    const covered = new Uint8Array(length);
    for (const change of changes) {
      const outcome = this.#image.outcome(change);
      const from = Math.max(at, outcome.at);
      const to = Math.min(at + length, outcome.at + outcome.length);
      for (let i = from; i < to; i++) {
        const byte = outcome.bytes === 'zeroes' ? 0 : outcome.bytes[i - outcome.at]!;
        covered[i - at] = 1;
        if (found[i - at] === byte) allowed[i - at] = 1;
      }
    }
    for (let i = 0; i < length; i++) {
      if (allowed[i] === 1 || ((mayBeOld || covered[i] === 0) && found[i] === old[i])) continue;
      assert.fail(`byte ${at + i} is ${found[i]}: nobody has written that there; before it was ${old[i]}`);
    }
  }

  #place(): Offset {
    const { length } = this.#image.model;
    const place = this.#prng.chance(0.1) ? length : this.#prng.pick([0, ...this.#places]);
    return Math.min(place, length);
  }

  #change(place = this.#place(), peer = false): Change {
    const prng = this.#prng;
    const { clusterSize, model } = this.#image;
    const kind = prng.pick(['write', 'write', 'write', 'compressed', 'zero', 'unmap', 'discard'] as const);
    const seed = ++this.#seed;
    if (kind === 'compressed') {
      const external = this.#image.plan.create['data-file'] !== undefined;
      const at = Math.min(this.#near(place), model.length - 1);
      const start = at - (at % clusterSize);
      const most = Math.min(clusterSize, model.length - start);
      return { kind: external ? 'write' : kind, at: start, length: external ? Math.min(most, BYTES_MAX) : most, seed };
    }
    const at = Math.min(this.#near(place), model.length - 1);
    const length = Math.min(this.#length(kind, peer), model.length - at);
    if (!prng.chance(0.4)) return { kind, at, length, seed };
    // Whole clusters.
    const first = at - (at % clusterSize);
    const whole = Math.max(clusterSize, length - (length % clusterSize));
    const most = kind === 'write' ? Math.max(BYTES_MAX, clusterSize) : whole;
    return { kind, at: first, length: Math.min(whole, most, model.length - first), seed };
  }

  #near(place: Offset): Offset {
    const prng = this.#prng;
    const { clusterSize } = this.#image;
    const jitter = prng.chance(0.5)
      ? prng.between(-4, 4) * clusterSize
      : prng.between(-3 * clusterSize, 3 * clusterSize);
    const unit = prng.pick([1, SECTOR, SECTOR, clusterSize]);
    const at = Math.max(0, place + jitter);
    return at - (at % unit);
  }

  #length(kind: Change['kind'], peer: boolean): Bytes {
    const prng = this.#prng;
    const { clusterSize } = this.#image;
    if ((kind === 'zero' || kind === 'unmap' || kind === 'discard') && prng.chance(0.1)) {
      // Without a zero flag, zeroes over what is below are written out.
      const { plan, version, model } = this.#image;
      const written = version === 2 && plan.layers!.length > 0;
      return prng.between(1, written ? BYTES_MAX : peer ? PEER_MAX : Math.min(model.length, 40_000 * clusterSize));
    }
    const most = prng.pick([700, SECTOR * 8, clusterSize, 5 * clusterSize]);
    return prng.between(1, Math.min(most, BYTES_MAX));
  }

  async #theirs(): Promise<void> {
    const changes = Array.from({ length: this.#prng.between(1, 4) }, () => this.#change(this.#place(), true));
    await this.#note(`QEMU: ${changes.map(describe).join('; ')}`, () => this.#image.theirs(...changes));
  }

  get #bits(): number {
    return this.#image.plan.create['refcount-bits'] ?? 16;
  }

  async #snapshot(): Promise<void> {
    const prng = this.#prng;
    const image = this.#image;
    if (this.#bits === 1 || image.plan.create['data-file'] !== undefined) return;
    // With few bits it may not be possible, and only we say so before anything is changed.
    const by = this.#bits >= 16 && prng.chance(0.3) ? 'QEMU' : 'us';
    const names = [...image.snapshots.keys()];
    const what = names.length === 0 ? 'create' : prng.pick(['create', 'apply', 'apply', 'delete'] as const);
    if (what === 'create' && names.length === SNAPSHOTS_MAX) return;
    const name = what === 'create' ? `s${this.#names++}` : prng.pick(names);
    try {
      await this.#note(`${by}: ${what} snapshot ${name}`, () => image.snapshot(what, name, by));
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno !== Errno.ERANGE || this.#bits > 8) throw error;
    }
  }

  async #resize(): Promise<void> {
    const prng = this.#prng;
    const image = this.#image;
    if (image.version === 2 && image.snapshots.size > 0) return;
    const { size } = image.plan.create;
    const now = image.model.length;
    const all = [size, size, this.#near(this.#place()), now + prng.below(4 * image.clusterSize)];
    // What comes over a layer below is zeroed, cluster by cluster.
    const far = image.plan.layers!.length > 0 ? 20_000 * image.clusterSize : size;
    const wanted = prng.pick(all.filter((length) => Math.abs(length - now) <= far));
    const length = Math.min(wanted - (wanted % SECTOR), size + 4 * MiB);
    const theirs = this.#mayQemuResize(length) && prng.chance(0.3);
    const by = theirs ? 'QEMU' : 'us';
    await this.#note(`${by}: resize to ${length}`, () => image.resize(length, by));
  }

  /** True where QEMU can do it, too, and in time. */
  #mayQemuResize(length: Bytes): boolean {
    const { model, clusterSize, version, plan } = this.#image;
    if (length === 0 || Math.abs(length - model.length) > 100_000 * clusterSize) return false;
    return length < model.length || version === 3 || plan.layers!.length === 0;
  }

  async #amend(): Promise<void> {
    const prng = this.#prng;
    const image = this.#image;
    if (image.version === 2) return;
    const lazy = prng.chance(0.5);
    const by = prng.chance(0.3) ? 'QEMU' : 'us';
    await this.#note(`${by}: amend lazy-refcounts=${lazy}`, () => image.amend({ 'lazy-refcounts': lazy }, by));
  }

  async #verify(): Promise<void> {
    await this.#note('verify', () => this.#image.verifyOurs());
    await this.#note('QEMU verifies', () => this.#image.verifyTheirs());
  }
}

function describe({ kind, at, length, seed }: Change): string {
  return `${kind} ${at}+${length} (${seed})`;
}
