import type { Bytes } from '../base/units.ts';

/** Encrypts and decrypts whole sectors in place. Synchronous, in the caller's thread. */
export interface SectorCipher {
  /** `bytes` are whole sectors of 512 bytes, the first of them number `sector`. */
  encrypt(bytes: Uint8Array, sector: number): void;
  decrypt(bytes: Uint8Array, sector: number): void;
}

/** How sectors are encrypted with AES, whose key says by its length which AES it is. */
export interface CipherSpec {
  readonly mode: 'xts' | 'cbc' | 'ecb';
  /** How a sector's number becomes its initialisation vector: its low 32 bits; all 64; these encrypted. */
  readonly ivgen: 'plain' | 'plain64' | 'essiv';
  /** For essiv: the hash of the key that it encrypts with. */
  readonly ivgenHash: string | undefined;
}

/** Bytes of the keys that a mode takes: of AES-128, 192 and 256. XTS takes two keys. */
export function keyLengths(mode: CipherSpec['mode']): readonly Bytes[] {
  return mode === 'xts' ? [32, 48, 64] : [16, 24, 32];
}
