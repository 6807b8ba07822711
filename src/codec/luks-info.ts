/** What the header of a LUKS volume says for everybody to see: no key, no salt. */
import type { Bytes, Offset } from '../base/units.ts';
import { parseLuksHeader, slotPlace } from './luks-header.ts';
import { keyLengths } from './sector-cipher.ts';

/** Plain data. Offsets are from the beginning of the header. */
export interface LuksInfo {
  /** aes-128, aes-192, aes-256. */
  readonly cipher: string;
  readonly mode: string;
  readonly ivgen: string;
  readonly ivgenHash: string | null;
  /** Of the key derivation. */
  readonly hash: string;
  readonly uuid: string;
  readonly payloadOffset: Offset;
  readonly masterKeyIterations: number;
  readonly slots: readonly LuksSlotInfo[];
}

export interface LuksSlotInfo {
  /** Where its key material is, or would be. */
  readonly keyOffset: Offset;
  /** Null where it is not in use. */
  readonly active: { readonly iterations: number; readonly stripes: number } | null;
}

/** Errors as parseLuksHeader has them. */
export function luksInfo(bytes: Uint8Array, length: Bytes): LuksInfo {
  const { cipher, keyBytes, hash, uuid, payloadAt, digestIterations, slots } = parseLuksHeader(bytes, length);
  return {
    cipher: ['aes-128', 'aes-192', 'aes-256'][keyLengths(cipher.mode).indexOf(keyBytes)]!,
    ...{ mode: cipher.mode, ivgen: cipher.ivgen, ivgenHash: cipher.ivgenHash ?? null, hash, uuid },
    ...{ payloadOffset: payloadAt, masterKeyIterations: digestIterations },
    slots: slots.map((slot, number) => ({
      keyOffset: slotPlace(bytes, number),
      active: slot ? { iterations: slot.iterations, stripes: slot.stripes } : null,
    })),
  };
}
