/**
 * Writing the header of an image that is there. A write of several sectors may come torn out of a crash, and a header
 * that cannot be read, or that names a file which nobody has named, takes the image with it. One sector is there or is
 * not. So a change of more than one goes in steps, each of which may be torn:
 *
 * 1. the backing file's name goes to sectors that the header on the disk does not refer to;
 * 2. the first sector changes, and refers to no other than these: the names of features, which are for people only, are
 *    left out, so that the extensions end in it;
 * 3. what is behind the first sector counts for nothing now, and is written;
 * 4. the first sector changes to what it shall be.
 *
 * Where the cluster has no room for two names, or other extensions do not fit in the first sector, sectors change one
 * after the other from the last to the first: that is as good as it can be there.
 */
import { BlockError } from '../../base/errors.ts';
import { alignDown, alignUp, type Offset, SECTOR } from '../../base/units.ts';
import { ExtensionType } from '../../proto/qcow2/constants.ts';
import { backingFilePlace, encodeHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { setExtension } from '../../proto/qcow2/header-extensions.ts';
import { encodeName } from '../../proto/qcow2/text.ts';
import { type MetadataIo, readHeader } from './metadata-io.ts';

interface Step {
  readonly at: Offset;
  readonly bytes: Uint8Array;
}

/** Makes `header` what is on the disk; it may have another place for the backing file's name then. Flushed in between,
 *  not after. */
export async function writeHeader(io: MetadataIo, header: Qcow2Header): Promise<void> {
  const bytes = encodeHeader(header);
  const changed = changedSectors(await io.read(0, bytes.length), bytes);
  const oneByOne = changed.reverse().map((sector) => stepOf(bytes, sector, sector + 1));
  const steps = oneByOne.length > 1 ? ((await orderedSteps(io, header)) ?? oneByOne) : oneByOne;
  for (const [i, step] of steps.entries()) {
    if (i > 0) await io.child.flush();
    await io.write(step.at, step.bytes);
  }
}

/** Numbers of the sectors of `after` that are not the same in `before`. */
export function changedSectors(before: Uint8Array, after: Uint8Array): number[] {
  const changed: number[] = [];
  for (let at = 0; at < after.length; at += SECTOR) {
    const differs = after.subarray(at, at + SECTOR).some((byte, i) => byte !== (before[at + i] ?? 0));
    if (differs) changed.push(at / SECTOR);
  }
  return changed;
}

/** Undefined where there is no room for them. */
async function orderedSteps(io: MetadataIo, header: Qcow2Header): Promise<Step[] | undefined> {
  const brief = { ...header, extensions: [...header.extensions] };
  setExtension(brief, ExtensionType.FEATURE_NAMES, undefined);
  if (extensionsEnd(brief) > SECTOR) return undefined;
  const steps: Step[] = [];
  if (header.backingFile !== undefined) {
    const place = placeOfName(await headerThere(io, header), header);
    if (place === undefined) return undefined;
    header.backingFileAt = place;
    brief.backingFileAt = place;
  }
  const bytes = encodeHeader(header);
  const sectors = bytes.length / SECTOR;
  if (header.backingFile !== undefined)
    steps.push(stepOf(bytes, Math.floor(backingFilePlace(header) / SECTOR), sectors));
  if (extensionsEnd(header) > SECTOR) steps.push(stepOf(encodeHeader(brief), 0, 1), stepOf(bytes, 1, sectors));
  return [...steps, stepOf(bytes, 0, 1)];
}

/** What is on the disk. A header that cannot be read refers to nothing. */
async function headerThere(io: MetadataIo, header: Qcow2Header): Promise<Qcow2Header> {
  try {
    return await readHeader(io, header.snapshotCount);
  } catch (error) {
    if (error instanceof BlockError) return header;
    throw error;
  }
}

/** Where the name is, if it stays as it is; else a beginning of a sector where it does not meet what `there` refers
 *  to. */
function placeOfName(there: Qcow2Header, header: Qcow2Header): Offset | undefined {
  const { length } = encodeName(header.backingFile ?? '');
  const old = backingFilePlace(there);
  const oldEnd = old + encodeName(there.backingFile ?? '').length;
  const first = Math.max(extensionsEnd(there), extensionsEnd(header));
  if (there.backingFile === header.backingFile && old >= first) return old;
  return [first, Math.max(first, alignUp(oldEnd, SECTOR))].find((from) => {
    const overlaps = from < oldEnd && from + length > alignDown(old, SECTOR);
    return !overlaps && from + length <= 2 ** header.clusterBits;
  });
}

/** Where the last sector of the extensions ends. */
function extensionsEnd(header: Qcow2Header): Offset {
  return encodeHeader({ ...header, backingFile: undefined }).length;
}

function stepOf(bytes: Uint8Array, first: number, end: number): Step {
  return { at: first * SECTOR, bytes: bytes.subarray(first * SECTOR, end * SECTOR) };
}
