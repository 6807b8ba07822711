/** The extensions between the header and the name of the backing file (specification: "Header extensions"). */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, type Offset } from '../../base/units.ts';
import { getU64 } from '../nbd/words.ts';
import {
  Autoclear,
  BACKING_FORMAT_MAX,
  BITMAP_DIRECTORY_BYTES_MAX,
  BITMAPS_MAX,
  Crypt,
  DATA_FILE_NAME_MAX,
  ENCRYPTION_HEADER_BYTES_MAX,
  ExtensionType,
  Incompatible,
} from './constants.ts';
import type { HeaderExtension, Qcow2Header } from './header.ts';
import { decodeName } from './text.ts';

/** Type and length before the data of an extension. */
const EXTENSION_HEAD = 8;
/** The least that a bitmap takes in the directory. */
const BITMAP_ENTRY_MIN = 24;

const KNOWN: ReadonlyMap<number, string> = new Map([
  [ExtensionType.BACKING_FORMAT, 'backing format'],
  [ExtensionType.FEATURE_NAMES, 'feature names'],
  [ExtensionType.BITMAPS, 'bitmaps'],
  [ExtensionType.ENCRYPTION, 'encryption header'],
  [ExtensionType.DATA_FILE, 'data file'],
]);

function label(type: number): string {
  return `header extension '${KNOWN.get(type) ?? `0x${type.toString(16)}`}'`;
}

function refuse(type: number, why: string): never {
  throw new BlockError(Errno.EINVAL, `Could not open the image: ${label(type)} ${why}`);
}

/** The extensions in `from`..`end` of the header's bytes, copied. They end with an end mark, or with the area.
 *  EINVAL. */
export function splitExtensions(bytes: Uint8Array, from: Offset, end: Offset): HeaderExtension[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const extensions: HeaderExtension[] = [];
  for (let at = from; at < end; ) {
    if (end - at < EXTENSION_HEAD) {
      if (bytes.subarray(at, end).every((byte) => byte === 0)) break;
      throw new BlockError(Errno.EINVAL, `Could not open the image: the header extension at ${at} is cut off`);
    }
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    at += EXTENSION_HEAD;
    if (length > end - at) refuse(type, `has ${length} bytes, and there is room for ${end - at}`);
    if (type === ExtensionType.END) break;
    extensions.push({ type, data: new Uint8Array(bytes.subarray(at, at + length)) });
    at += alignUp(length, 8);
  }
  return extensions;
}

/** Bytes that extensions take, with the end mark. */
export function extensionsLength(extensions: readonly HeaderExtension[]): Bytes {
  return extensions.reduce((sum, { data }) => sum + EXTENSION_HEAD + alignUp(data.length, 8), EXTENSION_HEAD);
}

/** Writes extensions into zeroes, from `at` on: the end mark and the padding are there already. */
export function joinExtensions(bytes: Uint8Array, at: Offset, extensions: readonly HeaderExtension[]): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let next = at;
  for (const { type, data } of extensions) {
    view.setUint32(next, type);
    view.setUint32(next + 4, data.length);
    bytes.set(data, next + EXTENSION_HEAD);
    next += EXTENSION_HEAD + alignUp(data.length, 8);
  }
}

/** The data of an extension; undefined where there is none of the type. */
export function extension(header: Pick<Qcow2Header, 'extensions'>, type: number): Uint8Array | undefined {
  return header.extensions.find((one) => one.type === type)?.data;
}

/** Sets an extension where it is, adds it at the end, or takes it out. */
export function setExtension(header: Qcow2Header, type: number, data: Uint8Array | undefined): void {
  const at = header.extensions.findIndex((one) => one.type === type);
  if (data === undefined) {
    if (at >= 0) header.extensions.splice(at, 1);
  } else if (at >= 0) header.extensions[at] = { type, data };
  else header.extensions.push({ type, data });
}

function nameIn(header: Qcow2Header, type: number, longest: number): string | undefined {
  const data = extension(header, type);
  if (data === undefined || data.length === 0) return undefined;
  if (data.length > longest) refuse(type, `is a name of ${data.length} bytes, and ${longest} is the limit`);
  if (data.includes(0)) refuse(type, 'is a name with a NUL in it');
  return decodeName(data);
}

/** The driver that the image names for its backing file. EINVAL. */
export function backingFormat(header: Qcow2Header): string | undefined {
  return nameIn(header, ExtensionType.BACKING_FORMAT, BACKING_FORMAT_MAX);
}

/** The name of the external data file, of an image that has one. A name is not trusted: see docs/QCOW2.md. EINVAL. */
export function dataFileName(header: Qcow2Header): string | undefined {
  if ((header.incompatible & Incompatible.DATA_FILE) === 0) return undefined;
  return nameIn(header, ExtensionType.DATA_FILE, DATA_FILE_NAME_MAX);
}

function fixedView(type: number, data: Uint8Array, length: Bytes): DataView {
  if (data.length !== length) refuse(type, `has ${data.length} bytes and must have ${length}`);
  return new DataView(data.buffer, data.byteOffset, data.length);
}

function clusterOffset(header: Qcow2Header, type: number, field: string, at: Offset, length: Bytes): Offset {
  if (at <= 0 || at % 2 ** header.clusterBits !== 0 || !Number.isSafeInteger(at + length)) {
    refuse(type, `has an invalid ${field}${at < 0 ? '' : ` (${at})`}`);
  }
  return at;
}

export interface BitmapsExtension {
  readonly count: number;
  readonly directorySize: Bytes;
  readonly directoryOffset: Offset;
}

/** Where the bitmap directory is. Undefined where there are no bitmaps, and where the autoclear bit is not set:
 *  somebody who does not know bitmaps has written the image, and the extension means nothing any more. EINVAL. */
export function bitmapsExtension(header: Qcow2Header): BitmapsExtension | undefined {
  const type = ExtensionType.BITMAPS;
  const data = extension(header, type);
  // The feature fields are 64 bits wide, as bigints.
  if (data === undefined || (header.autoclear & BigInt(Autoclear.BITMAPS)) === 0n) return undefined;
  const view = fixedView(type, data, 24);
  const count = view.getUint32(0);
  const directorySize = getU64(view, 8);
  if (count < 1 || count > BITMAPS_MAX) refuse(type, `has nb_bitmaps ${count}; it must be 1 to ${BITMAPS_MAX}`);
  if (view.getUint32(4) !== 0) refuse(type, 'has a reserved field that is not 0');
  if (directorySize < count * BITMAP_ENTRY_MIN || directorySize > BITMAP_DIRECTORY_BYTES_MAX) {
    refuse(type, `has an invalid bitmap_directory_size${directorySize < 0 ? '' : ` (${directorySize})`}`);
  }
  const directoryOffset = clusterOffset(header, type, 'bitmap_directory_offset', getU64(view, 16), directorySize);
  return { count, directorySize, directoryOffset };
}

export interface EncryptionExtension {
  readonly offset: Offset;
  readonly length: Bytes;
}

/** Where the LUKS header is, in an image that has one. EINVAL. */
export function encryptionExtension(header: Qcow2Header): EncryptionExtension | undefined {
  const type = ExtensionType.ENCRYPTION;
  const data = extension(header, type);
  if (data === undefined) return undefined;
  const view = fixedView(type, data, 16);
  const length = getU64(view, 8);
  if (length < 1 || length > ENCRYPTION_HEADER_BYTES_MAX) {
    refuse(type, `has an invalid length${length < 0 ? '' : ` (${length})`}`);
  }
  return { offset: clusterOffset(header, type, 'offset', getU64(view, 0), length), length };
}

/** What a header's extensions must be, all of them. EINVAL. */
export function checkExtensions(header: Qcow2Header): void {
  const seen = new Set<number>();
  for (const { type } of header.extensions) {
    if (seen.has(type) && KNOWN.has(type)) refuse(type, 'is there twice');
    seen.add(type);
  }
  backingFormat(header);
  dataFileName(header);
  bitmapsExtension(header);
  encryptionExtension(header);
  const luks = header.cryptMethod === Crypt.LUKS;
  if (luks && !seen.has(ExtensionType.ENCRYPTION)) refuse(ExtensionType.ENCRYPTION, 'is missing: crypt_method is 2');
  if (!luks && seen.has(ExtensionType.ENCRYPTION)) {
    refuse(ExtensionType.ENCRYPTION, `does not go with crypt_method ${header.cryptMethod}`);
  }
}
