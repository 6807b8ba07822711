/** The encryption of old qcow2 images. */
import { BlockError, Errno } from '../base/errors.ts';
import type { SectorCipher } from './sector-cipher.ts';

export function legacyAesCipher(_passphrase: Uint8Array): SectorCipher {
  throw new BlockError(Errno.ENOTSUP, 'Could not open the image: its encryption is not supported yet');
}
