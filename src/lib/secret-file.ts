/** Files with something secret in them. */
import { closeSync, openSync, readSync } from 'node:fs';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { type Bytes, KiB } from '../base/units.ts';

/** No passphrase is longer; what is (a device, say) is not read to its end. */
const SECRET_BYTES_MAX: Bytes = 64 * KiB;

/** All bytes of a file, which may be a pipe. EFBIG beyond 64 KiB. */
export function readSecretFile(path: string): Uint8Array {
  const bytes = new Uint8Array(SECRET_BYTES_MAX + 1);
  let length = 0;
  try {
    const fd = openSync(path, 'r');
    try {
      for (let read = -1; read !== 0 && length < bytes.length; length += read) {
        read = readSync(fd, bytes, length, bytes.length - length, null);
      }
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    const errno = errnoOf(error);
    throw new BlockError(errno, `Could not read '${path}': ${errnoText(errno)}`, { where: { path }, cause: error });
  }
  if (length > SECRET_BYTES_MAX) {
    throw new BlockError(Errno.EFBIG, `Could not read '${path}': it is longer than ${SECRET_BYTES_MAX} bytes`);
  }
  return bytes.slice(0, length);
}

/** Undefined for bytes that are not UTF-8. */
export function secretText(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}
