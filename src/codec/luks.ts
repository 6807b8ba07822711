/** LUKS, version 1. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { SectorCipher } from './sector-cipher.ts';

export interface LuksOptions {
  readonly cipher: string | undefined;
  readonly mode: string | undefined;
  readonly ivgen: string | undefined;
  readonly ivgenHash: string | undefined;
  readonly hash: string | undefined;
  readonly iterTime: number | undefined;
}

/** The cipher of a volume. `read` reads its header of `length` bytes. EACCES for a wrong passphrase. */
export async function luksCipher(
  _read: (at: Offset, length: Bytes) => Promise<Uint8Array>,
  _length: Bytes,
  _passphrase: Uint8Array,
): Promise<SectorCipher> {
  throw new BlockError(Errno.ENOTSUP, 'Could not open the image: its encryption is not supported yet');
}

/** The bytes of a new header with its key material. */
export async function createLuks(_options: LuksOptions, _passphrase: Uint8Array): Promise<{ bytes: Uint8Array }> {
  throw new BlockError(Errno.ENOTSUP, 'Could not create the image: encryption is not supported yet');
}
