/** For tests: what a disk of any size must read as, kept in chunks where something was written. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { isZero } from '../../base/memory.ts';
import { type Bytes, KiB, type Offset } from '../../base/units.ts';

const CHUNK = 64 * KiB;
const ZEROES = new Uint8Array(CHUNK);

export class DiskModel {
  length: Bytes;
  readonly #below: DiskModel | undefined;
  /** By their number; what is not here is below, or zeroes. Chunks are never changed in place: copies share them. */
  readonly #chunks: Map<number, Uint8Array>;

  constructor(length: Bytes, below?: DiskModel, chunks: ReadonlyMap<number, Uint8Array> = new Map()) {
    this.length = length;
    this.#below = below;
    this.#chunks = new Map(chunks);
  }

  /** What a snapshot is: it does not change any more, whatever becomes of this one. */
  copy(): DiskModel {
    return new DiskModel(this.length, this.#below, this.#chunks);
  }

  /** With something else below. What was written must be whole chunks of 64 KiB. */
  over(below: DiskModel | undefined): DiskModel {
    return new DiskModel(this.length, below, this.#chunks);
  }

  read(at: Offset, length: Bytes): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#eachPart(at, length, (index, inside, done, part) => {
      bytes.set(this.#chunk(index).subarray(inside, inside + part), done);
    });
    return bytes;
  }

  write(at: Offset, bytes: Uint8Array): void {
    this.#eachPart(at, bytes.length, (index, inside, done, part) => {
      const chunk = this.#chunk(index).slice();
      chunk.set(bytes.subarray(done, done + part), inside);
      this.#chunks.set(index, chunk);
    });
  }

  zero(at: Offset, length: Bytes): void {
    const end = at + length;
    for (const index of this.#touched()) {
      const from = Math.max(at - index * CHUNK, 0);
      const to = Math.min(end - index * CHUNK, CHUNK);
      if (from >= to) continue;
      if (from === 0 && to === CHUNK) this.#chunks.set(index, ZEROES);
      else this.#chunks.set(index, this.#chunk(index).slice().fill(0, from, to));
    }
  }

  /** What comes behind the old end is zeroes, whatever was there before or is below. */
  resize(length: Bytes): void {
    const from = Math.min(length, this.length);
    this.zero(from, Number.MAX_SAFE_INTEGER - from);
    this.length = length;
  }

  /** Writes it to a sparse file, for peers to compare with. */
  store(path: string): void {
    const fd = openSync(path, 'w');
    try {
      ftruncateSync(fd, this.length);
      for (const [at, bytes] of this.extents()) writeSync(fd, bytes, 0, bytes.length, at);
    } finally {
      closeSync(fd);
    }
  }

  /** Ranges outside of which all is zeroes, in order. */
  *extents(): Generator<readonly [Offset, Uint8Array]> {
    for (const index of [...this.#touched()].sort((a, b) => a - b)) {
      const at = index * CHUNK;
      const length = Math.min(CHUNK, this.length - at);
      if (length <= 0) continue;
      const bytes = this.#chunk(index).subarray(0, length);
      if (!isZero(bytes)) yield [at, bytes];
    }
  }

  /** Numbers of the chunks that may hold something. */
  #touched(): Set<number> {
    return new Set([...this.#chunks.keys(), ...(this.#below ? this.#below.#touched() : [])]);
  }

  #chunk(index: number): Uint8Array {
    const own = this.#chunks.get(index);
    if (own) return own;
    if (!this.#below) return ZEROES;
    const below = this.#below.#chunk(index);
    const inside = this.#below.length - index * CHUNK;
    if (inside >= CHUNK) return below;
    return inside <= 0 ? ZEROES : below.slice().fill(0, inside);
  }

  #eachPart(at: Offset, length: Bytes, visit: (index: number, inside: Bytes, done: Bytes, part: Bytes) => void): void {
    for (let done = 0; done < length; ) {
      const inside = (at + done) % CHUNK;
      const part = Math.min(CHUNK - inside, length - done);
      visit((at + done - inside) / CHUNK, inside, done, part);
      done += part;
    }
  }
}
