/**
 * The part of the header that names the bitmap directory. A write of several sectors may come torn out of a crash, and
 * a header that cannot be read takes the whole image with it. So it changes in steps, each of which may be torn:
 *
 * - what is behind the end mark of the extensions counts for nothing, so the last sector is written first;
 * - while the extension comes, goes, or changes in more than one sector, the autoclear bit says that it means nothing;
 * - the backing file's name is copied first, to where extensions will not need the room, and named there: it never
 *   moves with them.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, SECTOR } from '../../base/units.ts';
import { setU64 } from '../../proto/nbd/words.ts';
import { Autoclear, ExtensionType } from '../../proto/qcow2/constants.ts';
import { backingFilePlace, encodeHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import {
  type BitmapsExtension,
  bitmapsExtension,
  extension,
  setExtension,
} from '../../proto/qcow2/header-extensions.ts';
import type { Image } from './image.ts';

const BIT = BigInt(Autoclear.BITMAPS);
const KNOWN_AUTOCLEAR = BigInt(Autoclear.BITMAPS | Autoclear.DATA_FILE_RAW);
const EXTENSION_BYTES = 24;
/** With its type and length. */
const EXTENSION_ROOM = EXTENSION_BYTES + 8;

/** Makes the header name a directory, or none; on stable storage. All that it leads to is stable before. */
export async function nameDirectory(image: Image, place: BitmapsExtension | undefined): Promise<void> {
  const { header } = image;
  const there = extension(header, ExtensionType.BITMAPS) !== undefined;
  const bytes = place && encodePlace(place);
  if (bytes && !there) await makeRoom(image);
  const atOnce = bytes !== undefined && there && isOneSector(header, bytes);
  if (!atOnce) await rewrite(image, () => clearBits(header, BIT));
  await rewrite(image, () => setPlace(header, bytes));
  if (bytes) {
    await rewrite(image, () => {
      header.autoclear |= BIT;
    });
  }
}

/** Of an image that is open for writing: an extension that means nothing any more goes, and so do bits of what is not
 *  maintained here (specification: "autoclear_features"). What the extension led to is leaked. */
export async function clearStale(image: Image): Promise<void> {
  const { header } = image;
  const unknown = header.autoclear & ~KNOWN_AUTOCLEAR;
  if (unknown !== 0n) await rewrite(image, () => clearBits(header, unknown));
  const stale = extension(header, ExtensionType.BITMAPS) !== undefined && bitmapsExtension(header) === undefined;
  if (stale) await rewrite(image, () => setPlace(header, undefined));
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

/** In a cluster that is too small for it nothing is done: the name moves with the extensions then. */
async function makeRoom(image: Image): Promise<void> {
  const { header, io, file } = image;
  if (header.backingFile === undefined) return;
  const needed = backingFilePlace(header) + EXTENSION_ROOM;
  const nameLength = new TextEncoder().encode(header.backingFile).length;
  // One sector is never torn.
  if (hasRoom(header) || needed + nameLength <= SECTOR) return;
  const at = Math.max(encodeHeader(header).length, alignUp(needed, SECTOR));
  if (at + nameLength > image.geometry.clusterSize) return;
  // As we lay it out, which another program may have done in another way.
  await rewrite(image, () => undefined);
  const place = (): void => {
    header.backingFileAt = at;
  };
  await image.changeHeader(place, async (bytes) => {
    await io.write(at, bytes.subarray(at));
    await file.flush();
    await io.write(0, bytes.subarray(0, SECTOR));
  });
}

/** True when the extension fits in front of the name. */
function hasRoom(header: Qcow2Header): boolean {
  const after = { ...header, extensions: [...header.extensions] };
  setPlace(after, new Uint8Array(EXTENSION_BYTES));
  return backingFilePlace(after) === backingFilePlace(header);
}

/** Changes the header, on stable storage, one sector after the other. */
async function rewrite(image: Image, change: () => void): Promise<void> {
  const { io, file } = image;
  await image.changeHeader(change, async (bytes) => {
    const sectors = changedSectors(await io.read(0, bytes.length), bytes);
    for (const [i, sector] of sectors.reverse().entries()) {
      if (i > 0) await file.flush();
      await io.write(sector * SECTOR, bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR));
    }
  });
}

function changedSectors(before: Uint8Array, after: Uint8Array): number[] {
  const changed: number[] = [];
  for (let at = 0; at < after.length; at += SECTOR) {
    const differs = after.subarray(at, at + SECTOR).some((byte, i) => byte !== (before[at + i] ?? 0));
    if (differs) changed.push(at / SECTOR);
  }
  return changed;
}
