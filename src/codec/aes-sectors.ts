/**
 * AES over sectors, many of them in one call. The modes are built here on bare AES blocks (ECB): a call of OpenSSL
 * costs more than a sector does, and for XTS each sector would take a cipher object of its own. So does AES-192 in
 * XTS mode work, which OpenSSL does not have. [IEEE 1619: XTS-AES; NIST SP 800-38A: ECB, CBC]
 */
import { createCipheriv, createDecipheriv, createHash } from 'node:crypto';
import { endianness } from 'node:os';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, KiB, SECTOR } from '../base/units.ts';
import type { CipherSpec, SectorCipher } from './sector-cipher.ts';

/** Sectors go through working memory in pieces of this: it stays in the processor's cache. */
const CHUNK: Bytes = 64 * KiB;
/** Words of 32 bits, in the byte order of the machine. */
const SECTOR_WORDS = SECTOR / 4;
const BLOCK_WORDS = 4;

/** Returns as many new bytes; whole blocks. */
type Transform = (bytes: Uint8Array | Int32Array) => Uint8Array;
/** Changes whole sectors, a chunk at most, in place. `ivs` has a block for each. */
type Pass = (words: Int32Array, ivs: Int32Array) => void;
/** Makes the vectors of neighbouring sectors, in place of their numbers. */
type VectorMaker = (ivs: Int32Array) => void;

interface Mode {
  readonly encrypt: Pass;
  readonly decrypt: Pass;
}

/** ENOTSUP for a hash that cannot be the key of essiv, and on big-endian machines. */
export function aesSectors(spec: CipherSpec, key: Uint8Array): SectorCipher {
  if (endianness() !== 'LE') throw new BlockError(Errno.ENOTSUP, 'Could not encrypt: this machine is big-endian');
  return new AesSectors(MODES[spec.mode](key), vectorMaker(spec, key));
}

class AesSectors implements SectorCipher {
  readonly #mode: Mode;
  readonly #vectors: VectorMaker;
  readonly #bytes = new Uint8Array(CHUNK);
  readonly #words = new Int32Array(this.#bytes.buffer);
  readonly #ivs = new Int32Array((CHUNK / SECTOR) * BLOCK_WORDS);

  constructor(mode: Mode, vectors: VectorMaker) {
    this.#mode = mode;
    this.#vectors = vectors;
  }

  encrypt(bytes: Uint8Array, sector: number): void {
    this.#run(this.#mode.encrypt, bytes, sector);
  }

  decrypt(bytes: Uint8Array, sector: number): void {
    this.#run(this.#mode.decrypt, bytes, sector);
  }

  #run(pass: Pass, bytes: Uint8Array, sector: number): void {
    for (let at = 0; at < bytes.length; at += CHUNK) {
      const chunk = bytes.subarray(at, at + CHUNK);
      this.#bytes.set(chunk);
      const words = this.#words.subarray(0, chunk.length / 4);
      const ivs = this.#ivs.subarray(0, (chunk.length / SECTOR) * BLOCK_WORDS);
      fillNumbers(ivs, sector + at / SECTOR);
      this.#vectors(ivs);
      pass(words, ivs);
      chunk.set(this.#bytes.subarray(0, chunk.length));
    }
  }
}

/** A block for each sector from `first` on: its number, little-endian. */
function fillNumbers(ivs: Int32Array, first: number): void {
  ivs.fill(0);
  for (let i = 0; i < ivs.length; i += BLOCK_WORDS) {
    const sector = first + i / BLOCK_WORDS;
    ivs[i] = sector % 2 ** 32;
    ivs[i + 1] = Math.floor(sector / 2 ** 32);
  }
}

function vectorMaker({ ivgen, ivgenHash }: CipherSpec, key: Uint8Array): VectorMaker {
  if (ivgen === 'plain64') return () => undefined;
  if (ivgen === 'plain') {
    return (ivs) => {
      for (let i = 1; i < ivs.length; i += BLOCK_WORDS) ivs[i] = 0;
    };
  }
  const salt = createHash(ivgenHash!).update(key).digest();
  if (salt.length !== 16 && salt.length !== 24 && salt.length !== 32) {
    throw new BlockError(Errno.ENOTSUP, `Could not encrypt: there is no AES with a key of ${ivgenHash} for essiv`);
  }
  const encrypt = encryptor(salt);
  return (ivs) => put(ivs, encrypt(ivs));
}

/** Blocks have nothing to do with each other: one object serves for good. */
function encryptor(key: Uint8Array): Transform {
  const cipher = createCipheriv(`aes-${key.length * 8}-ecb`, key, null).setAutoPadding(false);
  return (bytes) => cipher.update(bytes);
}

function decryptor(key: Uint8Array): Transform {
  const cipher = createDecipheriv(`aes-${key.length * 8}-ecb`, key, null).setAutoPadding(false);
  return (bytes) => cipher.update(bytes);
}

const MODES: Readonly<Record<CipherSpec['mode'], (key: Uint8Array) => Mode>> = { xts, cbc, ecb };

function ecb(key: Uint8Array): Mode {
  const encrypt = encryptor(key);
  const decrypt = decryptor(key);
  return {
    encrypt: (words) => put(words, encrypt(words)),
    decrypt: (words) => put(words, decrypt(words)),
  };
}

function xts(key: Uint8Array): Mode {
  const half = key.length / 2;
  const encryptTweak = encryptor(key.subarray(half));
  const masks = new Int32Array(CHUNK / 4);
  const pass = (transform: Transform): Pass => {
    return (words, ivs) => {
      put(ivs, encryptTweak(ivs));
      fillMasks(masks, ivs);
      mix(words, masks);
      put(words, transform(words));
      mix(words, masks);
    };
  };
  return { encrypt: pass(encryptor(key.subarray(0, half))), decrypt: pass(decryptor(key.subarray(0, half))) };
}

/** The mask of a sector's first block is its tweak; each next one is the one before times x, in GF(2^128). */
function fillMasks(masks: Int32Array, tweaks: Int32Array): void {
  for (let i = 0, w = 0; i < tweaks.length; i += BLOCK_WORDS) {
    let [a, b, c, d] = [tweaks[i]!, tweaks[i + 1]!, tweaks[i + 2]!, tweaks[i + 3]!];
    for (const end = w + SECTOR_WORDS; w < end; w += BLOCK_WORDS) {
      masks[w] = a;
      masks[w + 1] = b;
      masks[w + 2] = c;
      masks[w + 3] = d;
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
}

function cbc(key: Uint8Array): Mode {
  const decrypt = decryptor(key);
  const cipher = createCipheriv(`aes-${key.length * 8}-cbc`, key, new Uint8Array(16)).setAutoPadding(false);
  // The one chain goes on from sector to sector: what it will add to a sector's first block is taken out beforehand.
  const last = new Int32Array(BLOCK_WORDS);
  const before = new Int32Array(CHUNK / 4);
  return {
    encrypt: (words, ivs) => {
      for (let i = 0; i < ivs.length; i += BLOCK_WORDS) {
        const at = (i / BLOCK_WORDS) * SECTOR_WORDS;
        const sector = words.subarray(at, at + SECTOR_WORDS);
        for (let w = 0; w < BLOCK_WORDS; w++) sector[w]! ^= last[w]! ^ ivs[i + w]!;
        put(sector, cipher.update(sector));
        last.set(sector.subarray(-BLOCK_WORDS));
      }
    },
    decrypt: (words, ivs) => {
      before.set(words.subarray(0, -BLOCK_WORDS), BLOCK_WORDS);
      for (let i = 0; i < ivs.length; i += BLOCK_WORDS) {
        before.set(ivs.subarray(i, i + BLOCK_WORDS), (i / BLOCK_WORDS) * SECTOR_WORDS);
      }
      put(words, decrypt(words));
      mix(words, before);
    },
  };
}

function mix(words: Int32Array, masks: Int32Array): void {
  for (let w = 0; w < words.length; w++) words[w]! ^= masks[w]!;
}

/** The bytes may begin anywhere, and so are copied as bytes. */
function put(words: Int32Array, bytes: Uint8Array): void {
  new Uint8Array(words.buffer, words.byteOffset, words.byteLength).set(bytes);
}
