/**
 * A seeded source of pseudo-random numbers: xoshiro128** (Blackman and Vigna, "Scrambled linear pseudorandom number
 * generators", 2018; public domain). Same seed, same numbers, everywhere. For tests and simulation, never for keys.
 */
export class Prng {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** Any integer; only its low 53 bits count. */
  constructor(seed: number) {
    // splitmix32 spreads the seed: a state of all zeroes would stay so, and near seeds must not give near numbers.
    let state = (seed % 2 ** 32) | 0;
    const next = (): number => {
      state = (state + 0x9e37_79b9) | 0;
      let z = state ^ (state >>> 16);
      z = Math.imul(z, 0x21f0_aaad);
      z ^= z >>> 15;
      z = Math.imul(z, 0x735a_2d97);
      return z ^ (z >>> 15);
    };
    this.#a = next();
    state ^= Math.imul(Math.floor(seed / 2 ** 32), 0x85eb_ca6b);
    this.#b = next();
    this.#c = next();
    this.#d = next() | 1;
  }

  /** A source in a given state, which must not be all zeroes. */
  static ofState(a: number, b: number, c: number, d: number): Prng {
    const prng = new Prng(0);
    prng.#a = a;
    prng.#b = b;
    prng.#c = c;
    prng.#d = d;
    return prng;
  }

  /** 0..2^32-1. */
  u32(): number {
    const scrambled = Math.imul(rotate(Math.imul(this.#b, 5), 7), 9);
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = rotate(this.#d, 11);
    return scrambled >>> 0;
  }

  /** 0 <= x < 1, with 53 random bits. */
  float(): number {
    return ((this.u32() >>> 5) * 2 ** 26 + (this.u32() >>> 6)) / 2 ** 53;
  }

  /** An integer 0 <= x < `limit`; `limit` up to 2^53-1. */
  below(limit: number): number {
    return Math.floor(this.float() * limit);
  }

  /** An integer `low` <= x <= `high`. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  chance(probability: number): boolean {
    return this.float() < probability;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  fill(bytes: Uint8Array): Uint8Array {
    for (let i = 0; i < bytes.length; i++) bytes[i] = this.u32() >>> 24;
    return bytes;
  }

  /** A new, independent source; this one moves on. */
  fork(): Prng {
    return new Prng(this.below(Number.MAX_SAFE_INTEGER));
  }
}

function rotate(value: number, by: number): number {
  return (value << by) | (value >>> (32 - by));
}
