/**
 * The part of the header that names the bitmap directory. While the extension comes, goes, or changes in more than one
 * sector, the autoclear bit says that it means nothing.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { setU64 } from '../../proto/nbd/words.ts';
import { Autoclear, ExtensionType } from '../../proto/qcow2/constants.ts';
import { backingFilePlace, encodeHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import {
  type BitmapsExtension,
  bitmapsExtension,
  extension,
  setExtension,
} from '../../proto/qcow2/header-extensions.ts';
import { changedSectors } from './header-write.ts';
import type { Image } from './image.ts';

const BIT = BigInt(Autoclear.BITMAPS);
const KNOWN_AUTOCLEAR = BigInt(Autoclear.BITMAPS | Autoclear.DATA_FILE_RAW);
const EXTENSION_BYTES = 24;

/** Makes the header name a directory, or none; on stable storage. All that it leads to is stable before. */
export async function nameDirectory(image: Image, place: BitmapsExtension | undefined): Promise<void> {
  const { header } = image;
  const there = extension(header, ExtensionType.BITMAPS) !== undefined;
  const bytes = place && encodePlace(place);
  const atOnce = bytes !== undefined && there && isOneSector(header, bytes);
  if (!atOnce) await image.changeHeader(() => clearBits(header, BIT));
  await image.changeHeader(() => setPlace(header, bytes));
  if (bytes) {
    await image.changeHeader(() => {
      header.autoclear |= BIT;
    });
  }
}

/** Of an image that is open for writing: an extension that means nothing any more goes, and so do bits of what is not
 *  maintained here (specification: "autoclear_features"). What the extension led to is leaked. */
export async function clearStale(image: Image): Promise<void> {
  const { header } = image;
  const unknown = header.autoclear & ~KNOWN_AUTOCLEAR;
  if (unknown !== 0n) await image.changeHeader(() => clearBits(header, unknown));
  const stale = extension(header, ExtensionType.BITMAPS) !== undefined && bitmapsExtension(header) === undefined;
  if (stale) await image.changeHeader(() => setPlace(header, undefined));
}

function clearBits(header: Qcow2Header, bits: bigint): void {
  header.autoclear &= ~bits;
}

function encodePlace({ count, directorySize, directoryOffset }: BitmapsExtension): Uint8Array {
  const bytes = new Uint8Array(EXTENSION_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, count);
  setU64(view, 8, directorySize);
  setU64(view, 16, directoryOffset);
  return bytes;
}

/** In a small cluster there may be no room for the names of features, which are for people only. */
function setPlace(header: Qcow2Header, bytes: Uint8Array | undefined): void {
  if (header.backingFile !== undefined) header.backingFileAt = backingFilePlace(header);
  setExtension(header, ExtensionType.BITMAPS, bytes);
  try {
    encodeHeader(header);
  } catch (error) {
    if (!(error instanceof BlockError) || error.errno !== Errno.ENOSPC) throw error;
    setExtension(header, ExtensionType.FEATURE_NAMES, undefined);
  }
}

function isOneSector(header: Qcow2Header, bytes: Uint8Array): boolean {
  const after = { ...header, extensions: [...header.extensions] };
  setPlace(after, bytes);
  return changedSectors(encodeHeader(header), encodeHeader(after)).length === 1;
}
