/** The encryption of old qcow2 images: crypt_method 1 of the specification. For reading only, as it is not safe. */
import type { Bytes } from '../base/units.ts';
import { aesSectors } from './aes-sectors.ts';
import type { SectorCipher } from './sector-cipher.ts';

const KEY_BYTES: Bytes = 16;

/** There is no way to tell a wrong passphrase: all of them decrypt to something. */
export function legacyAesCipher(passphrase: Uint8Array): SectorCipher {
  // The passphrase itself, cut off or filled up with zeroes, is the key.
  const key = new Uint8Array(KEY_BYTES);
  key.set(passphrase.subarray(0, KEY_BYTES));
  return aesSectors({ mode: 'cbc', ivgen: 'plain64', ivgenHash: undefined }, key);
}
