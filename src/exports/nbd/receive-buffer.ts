/**
 * Where a connection receives. A few chunks in turn: writes are submitted from the chunk they arrived in, without a
 * copy, and a chunk is received into again only when nobody uses its bytes.
 *
 *     chunk:  | consumed | parsed, in use by writes | pos: not yet parsed | fill: free |
 */
import { forCopying, type Memory } from '../../base/memory.ts';
import { type Bytes, KiB } from '../../base/units.ts';

export const CHUNK_BYTES = 64 * KiB;
export const CHUNKS = 4;
/**
 * A payload up to this length is received into a chunk; a longer one gets a block of its own for what is not there yet.
 */
export const CHUNK_PAYLOAD_MAX = 32 * KiB;
/** Less free room than this at a chunk's end is not worth a receive. */
const ROOM_MIN = 8 * KiB;

export class ReceiveBuffer {
  readonly memory: Memory;
  /** Next byte to parse, and the end of what was received; offsets in {@link memory}. */
  pos = 0;
  fill = 0;
  #chunk = 0;
  readonly #pins = new Int32Array(CHUNKS);

  /** Uses the first {@link CHUNKS} * {@link CHUNK_BYTES} of `memory`. */
  constructor(memory: Memory) {
    this.memory = memory;
  }

  /** Bytes that wait to be parsed. */
  get available(): Bytes {
    return this.fill - this.pos;
  }

  /** The number of the chunk that is being parsed. */
  get chunk(): number {
    return this.#chunk;
  }

  pin(): number {
    this.#pins[this.#chunk]!++;
    return this.#chunk;
  }

  unpin(chunk: number): void {
    this.#pins[chunk]!--;
  }

  /**
   * Room for the next receive; 0 when every chunk is in use. `need`: bytes from `pos` on that must fit in one piece.
   */
  room(need: Bytes): Bytes {
    const end = (this.#chunk + 1) * CHUNK_BYTES;
    if (this.available === 0 && this.#pins[this.#chunk] === 0) {
      this.pos = this.#chunk * CHUNK_BYTES;
      this.fill = this.pos;
      return CHUNK_BYTES;
    }
    if (end - this.fill >= ROOM_MIN && end - this.pos >= need) return end - this.fill;
    return this.#next(need) ? (this.#chunk + 1) * CHUNK_BYTES - this.fill : 0;
  }

  /** Copies what comes from elsewhere behind `fill`; at most a chunk's length, on an unused buffer. */
  preload(bytes: Uint8Array): void {
    forCopying(this.memory).set(bytes, this.fill);
    this.fill += bytes.length;
  }

  /** A copy of what waits to be parsed. */
  takeRest(): Uint8Array {
    return this.memory.bytes.slice(this.pos, this.fill);
  }

  // Goes on in a chunk that nobody uses, taking along what is not parsed.
  #next(need: Bytes): boolean {
    const rest = this.available;
    if (this.#pins[this.#chunk] === 0) {
      this.#moveTo(this.#chunk);
      return true;
    }
    for (let i = 1; i < CHUNKS; i++) {
      const chunk = (this.#chunk + i) % CHUNKS;
      if (this.#pins[chunk] !== 0) continue;
      this.#moveTo(chunk);
      return true;
    }
    // Every chunk is in use. What is left of this one will do if the message fits.
    return (
      rest < need && (this.#chunk + 1) * CHUNK_BYTES - this.pos >= need && this.fill < (this.#chunk + 1) * CHUNK_BYTES
    );
  }

  #moveTo(chunk: number): void {
    const start = chunk * CHUNK_BYTES;
    forCopying(this.memory).copyWithin(start, this.pos, this.fill);
    this.fill = start + this.available;
    this.pos = start;
    this.#chunk = chunk;
  }
}
