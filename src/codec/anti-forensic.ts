/**
 * The anti-forensic split of LUKS: a key as many stripes, all of which are needed to get it back, so that wiping some
 * of them wipes the key. [LUKS1 on-disk format: "Anti-forensic splitter"]
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Bytes } from '../base/units.ts';

/** `stripes` times the bytes of the key. */
export function splitKey(key: Uint8Array, stripes: number, hash: string): Uint8Array {
  const { length } = key;
  const split = new Uint8Array(randomBytes(length * stripes));
  const last = split.subarray(-length);
  last.set(diffused(split, length, stripes, hash));
  for (let i = 0; i < length; i++) last[i]! ^= key[i]!;
  return split;
}

export function mergeKey(split: Uint8Array, stripes: number, hash: string): Uint8Array {
  const length = split.length / stripes;
  const key = diffused(split, length, stripes, hash);
  const last = split.subarray(-length);
  for (let i = 0; i < length; i++) key[i]! ^= last[i]!;
  return key;
}

/** Of all stripes but the last: each is added to the hash of those before it. */
function diffused(split: Uint8Array, length: Bytes, stripes: number, hash: string): Uint8Array {
  const block = new Uint8Array(length);
  const digestBytes = createHash(hash).digest().length;
  for (let at = 0; at < length * (stripes - 1); at += length) {
    for (let i = 0; i < length; i++) block[i]! ^= split[at + i]!;
    diffuse(block, hash, digestBytes);
  }
  return block;
}

/** Hashes a block in place, a digest's length at a time, each piece behind its number. */
function diffuse(block: Uint8Array, hash: string, digestBytes: Bytes): void {
  const number = new DataView(new ArrayBuffer(4));
  for (let i = 0; i * digestBytes < block.length; i++) {
    number.setUint32(0, i);
    const piece = block.subarray(i * digestBytes, (i + 1) * digestBytes);
    piece.set(createHash(hash).update(number).update(piece).digest().subarray(0, piece.length));
  }
}
