import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PagedBits } from './paged-bits.ts';
import { Prng } from './prng.ts';

const PAGE = 32_768;

/** What PagedBits is to do, the plain way. */
class Model {
  length: number;
  readonly set = new Set<number>();

  constructor(length: number) {
    this.length = length;
  }

  next(from: number, end: number, wanted: boolean): number {
    for (let i = from; i < end; i++) if (this.set.has(i) === wanted) return i;
    return end;
  }
}

function assertSame(bits: PagedBits, model: Model, what: string): void {
  assert.equal(bits.count, model.set.size, what);
  for (let at = 0; at < model.length; ) {
    const dirty = bits.next(at, model.length, true);
    const end = bits.next(dirty, model.length, false);
    assert.equal(dirty, model.next(at, model.length, true), what);
    assert.equal(end, model.next(dirty, model.length, false), what);
    at = Math.max(end, dirty);
  }
}

/** A range: short, or over page edges, or of whole pages. */
function range(prng: Prng, length: number): [number, number] {
  const first = prng.chance(0.3) ? Math.floor(prng.below(length) / PAGE) * PAGE : prng.below(length);
  const want = prng.chance(0.5) ? prng.between(1, 40) : prng.chance(0.3) ? PAGE : prng.between(1, 2 * PAGE);
  return [first, Math.min(first + want, length) - 1];
}

test('random operations leave the bits of a plain set', () => {
  for (let seed = 1; seed <= 12; seed++) {
    const prng = new Prng(seed);
    const model = new Model(prng.between(1, 5 * PAGE));
    const bits = new PagedBits(model.length);
    for (let step = 0; step < 25; step++) {
      const what = `seed ${seed}, step ${step}`;
      const kind = prng.below(10);
      if (kind < 5) {
        const [first, last] = range(prng, model.length);
        bits.set(first, last);
        for (let i = first; i <= last; i++) model.set.add(i);
      } else if (kind < 7) {
        const [first, last] = range(prng, model.length);
        bits.unset(first, last);
        for (let i = first; i <= last; i++) model.set.delete(i);
      } else if (kind === 7) {
        model.length = Math.max(1, model.length + prng.between(-PAGE, PAGE));
        bits.resize(model.length);
        for (const i of [...model.set]) if (i >= model.length) model.set.delete(i);
      } else if (kind === 8) {
        const other = new PagedBits(model.length);
        const [first, last] = range(prng, model.length);
        other.set(first, last);
        bits.or(other);
        for (let i = first; i <= last; i++) model.set.add(i);
      } else if (prng.chance(0.2)) {
        bits.clear();
        model.set.clear();
      }
      assert.equal(bits.length, model.length);
      assertSame(bits, model, what);
    }
  }
});

test('bits that are copied out and in by bytes, in pieces of any size, are the same', () => {
  const prng = new Prng(7);
  for (const piece of [64, 512, 4096, 65_536]) {
    const length = 3 * PAGE + 5;
    const bits = new PagedBits(length);
    const model = new Model(length);
    for (let i = 0; i < 20; i++) {
      const [first, last] = range(prng, length);
      bits.set(first, last);
      for (let bit = first; bit <= last; bit++) model.set.add(bit);
    }
    const copy = new PagedBits(length);
    for (let at = 0; at * 8 < length; at += piece) {
      const bytes = new Uint8Array(piece).fill(0x55);
      bits.readBytes(at, bytes);
      for (let bit = 0; bit < piece * 8; bit++) {
        const is = ((bytes[bit >>> 3]! >>> (bit & 7)) & 1) === 1;
        if (is !== model.set.has(at * 8 + bit)) assert.fail(`bit ${at * 8 + bit} of pieces of ${piece}`);
      }
      copy.writeBytes(at, bytes);
    }
    assertSame(copy, model, `pieces of ${piece}`);
  }
});

test('what is behind the end is not taken over', () => {
  const bits = new PagedBits(11);
  bits.writeBytes(0, new Uint8Array(64).fill(0xff));
  assert.equal(bits.count, 11);
  bits.resize(100);
  assert.equal(bits.next(0, 100, false), 11);
  assert.equal(bits.count, 11);
});

test('memory is taken for pages of which some bits are set, and for no others', () => {
  const bits = new PagedBits(2 ** 32);
  assert.equal(bits.memory, 0);
  bits.set(0, 2 ** 32 - 1);
  assert.equal(bits.memory, 0);
  assert.equal(bits.count, 2 ** 32);
  bits.clear();
  bits.set(2 ** 32 - 1, 2 ** 32 - 1);
  assert.equal(bits.memory, 4096);
  assert.equal(bits.next(0, 2 ** 32, true), 2 ** 32 - 1);
  bits.set(2 ** 32 - PAGE, 2 ** 32 - 1);
  assert.equal(bits.memory, 0, 'a page that is all set needs none');
});

test('the generation tells changes, and a bit that is set already is none', () => {
  const bits = new PagedBits(1000);
  bits.set(3, 9);
  const { generation } = bits;
  bits.set(4, 8);
  bits.resize(1000);
  assert.equal(bits.generation, generation);
  bits.set(9, 10);
  assert.notEqual(bits.generation, generation);
  const later = bits.generation;
  bits.clear();
  assert.notEqual(bits.generation, later);
});
