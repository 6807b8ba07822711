/**
 * The header of a LUKS volume, version 1, with every bound checked: whoever tries the key slots of a header that was
 * parsed here uses bounded memory and time. [LUKS1 on-disk format: "The partition header"]
 */
import { getHashes } from 'node:crypto';
import { BlockError, Errno } from '../base/errors.ts';
import { type Bytes, type Offset, SECTOR } from '../base/units.ts';
import { type CipherSpec, keyLengths } from './sector-cipher.ts';

export const LUKS_HEADER_BYTES = 592;
export const SALT_BYTES = 32;
export const DIGEST_BYTES = 20;
export const KEY_SLOTS = 8;
/** What the standard says, and everybody writes. More would cost memory and time: with it, a slot's key material has
 *  at most 256,000 bytes. */
export const STRIPES = 4000;
/**
 * The most that one key slot, and one check of a master key, may take, in rounds: iterations times the digests that it
 * takes to fill the key. With SHA-256, a core of today does 2^23 in a second: a try of a slot takes at most some ten
 * seconds, and all eight of a hostile header a minute and a half. Key slots are made to take two seconds as a rule.
 */
export const SLOT_ROUNDS_MAX = 2 ** 26;
export const DIGEST_ROUNDS_MAX = 2 ** 24;

/** Names that hash-spec and essiv may have, and the bytes of their digests. */
const DIGESTS: Readonly<Record<string, Bytes>> = {
  ...{ md5: 16, ripemd160: 20, sha1: 20, sha224: 28, sha256: 32, sha384: 48, sha512: 64 },
};

export interface LuksKeySlot {
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Of the key material, from the beginning of the header. */
  readonly at: Offset;
  readonly stripes: number;
}

export interface LuksHeader {
  readonly cipher: CipherSpec;
  readonly hash: string;
  readonly payloadAt: Offset;
  /** Of the master key. */
  readonly keyBytes: Bytes;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  /** By number; undefined for one that is not in use. */
  readonly slots: readonly (LuksKeySlot | undefined)[];
}

/** Where fields are. */
const At = {
  MAGIC: 0,
  VERSION: 6,
  CIPHER_NAME: 8,
  CIPHER_MODE: 40,
  HASH_SPEC: 72,
  PAYLOAD_OFFSET: 104,
  KEY_BYTES: 108,
  DIGEST: 112,
  DIGEST_SALT: 132,
  DIGEST_ITERATIONS: 164,
  UUID: 168,
  SLOTS: 208,
} as const;
/** Where fields of a key slot are. */
const SlotAt = { ACTIVE: 0, ITERATIONS: 4, SALT: 8, MATERIAL_OFFSET: 40, STRIPES: 44 } as const;
const SLOT_BYTES = 48;
const NAME_BYTES = 32;
const UUID_BYTES = 40;
/** "LUKS" and 0xbabe. */
const MAGIC = [0x4c554b53, 0xbabe] as const;
const VERSION = 1;
const ACTIVE = 0x00ac71f3;
const INACTIVE = 0x0000dead;

function refuse(why: string, errno: number = Errno.EINVAL): never {
  throw new BlockError(errno, `Could not use the LUKS header: ${why}`);
}

/** Rounds of PBKDF2 for each iteration. */
export function roundsOf(hash: string, length: Bytes): number {
  return Math.ceil(length / DIGESTS[hash]!);
}

/** `bytes` are at least the first LUKS_HEADER_BYTES of a header that has, with its key material, `length`. EINVAL names
 *  the field that is wrong; ENOTSUP what is not supported. */
export function parseLuksHeader(bytes: Uint8Array, length: Bytes): LuksHeader {
  if (length < LUKS_HEADER_BYTES) refuse(`it is cut off after ${length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(At.MAGIC) !== MAGIC[0] || view.getUint16(At.MAGIC + 4) !== MAGIC[1]) refuse('its magic is wrong');
  const version = view.getUint16(At.VERSION);
  if (version !== VERSION) refuse(`LUKS version ${version} is not supported`, Errno.ENOTSUP);
  const hash = knownHash(nameAt(bytes, At.HASH_SPEC, 'hash-spec'), 'hash-spec');
  const cipher = parseCipher(
    nameAt(bytes, At.CIPHER_NAME, 'cipher-name'),
    nameAt(bytes, At.CIPHER_MODE, 'cipher-mode'),
  );
  const keyBytes = view.getUint32(At.KEY_BYTES);
  if (!keyLengths(cipher.mode).includes(keyBytes)) {
    refuse(`key-bytes is ${keyBytes}; for aes-${cipher.mode} it must be one of ${keyLengths(cipher.mode).join(', ')}`);
  }
  const digestIterations = view.getUint32(At.DIGEST_ITERATIONS);
  checkIterations('mk-digest-iter', digestIterations, roundsOf(hash, DIGEST_BYTES), DIGEST_ROUNDS_MAX);
  const slots = Array.from({ length: KEY_SLOTS }, (_, i) => parseSlot(bytes, view, i, hash, keyBytes));
  const payloadAt = view.getUint32(At.PAYLOAD_OFFSET) * SECTOR;
  checkPlaces(slots, keyBytes, length, payloadAt);
  return {
    ...{ cipher, hash, payloadAt, keyBytes, digestIterations, slots },
    digest: bytes.slice(At.DIGEST, At.DIGEST + DIGEST_BYTES),
    digestSalt: bytes.slice(At.DIGEST_SALT, At.DIGEST_SALT + SALT_BYTES),
    uuid: textAt(bytes, At.UUID, UUID_BYTES),
  };
}

/** Where the key material of a slot is, or would be. */
export function slotPlace(bytes: Uint8Array, slot: number): Offset {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return view.getUint32(At.SLOTS + slot * SLOT_BYTES + SlotAt.MATERIAL_OFFSET) * SECTOR;
}

/** Slots that are not in use have the place and the stripes of `spare`, by number. */
export function encodeLuksHeader(header: LuksHeader, spare: (slot: number) => Offset): Uint8Array {
  const bytes = new Uint8Array(LUKS_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  const { mode, ivgen, ivgenHash } = header.cipher;
  const text = (at: number, value: string): void => bytes.set(new TextEncoder().encode(value), at);
  view.setUint32(At.MAGIC, MAGIC[0]);
  view.setUint16(At.MAGIC + 4, MAGIC[1]);
  view.setUint16(At.VERSION, VERSION);
  text(At.CIPHER_NAME, 'aes');
  text(At.CIPHER_MODE, `${mode}-${ivgen}${ivgenHash === undefined ? '' : `:${ivgenHash}`}`);
  text(At.HASH_SPEC, header.hash);
  view.setUint32(At.PAYLOAD_OFFSET, header.payloadAt / SECTOR);
  view.setUint32(At.KEY_BYTES, header.keyBytes);
  bytes.set(header.digest, At.DIGEST);
  bytes.set(header.digestSalt, At.DIGEST_SALT);
  view.setUint32(At.DIGEST_ITERATIONS, header.digestIterations);
  text(At.UUID, header.uuid);
  header.slots.forEach((slot, i) => {
    const at = At.SLOTS + i * SLOT_BYTES;
    view.setUint32(at + SlotAt.ACTIVE, slot ? ACTIVE : INACTIVE);
    view.setUint32(at + SlotAt.ITERATIONS, slot?.iterations ?? 0);
    if (slot) bytes.set(slot.salt, at + SlotAt.SALT);
    view.setUint32(at + SlotAt.MATERIAL_OFFSET, (slot?.at ?? spare(i)) / SECTOR);
    view.setUint32(at + SlotAt.STRIPES, slot?.stripes ?? STRIPES);
  });
  return bytes;
}

/** ENOTSUP for a hash that is not one of the format's, or that this OpenSSL does not have. */
export function knownHash(name: string, field: string): string {
  if (!Object.hasOwn(DIGESTS, name) || !getHashes().includes(name)) {
    refuse(`${field} '${name}' is not supported`, Errno.ENOTSUP);
  }
  return name;
}

/** Of the names in a header. ENOTSUP. */
function parseCipher(name: string, mode: string): CipherSpec {
  if (name !== 'aes') refuse(`cipher-name '${name}' is not supported, aes is`, Errno.ENOTSUP);
  // Bare ECB has no vectors: whatever makes them.
  const [, base, ivgen = 'plain64', hash] = /^(xts|cbc|ecb)(?:-(plain|plain64|essiv)(?::(\w+))?)?$/.exec(mode) ?? [];
  if (base === undefined || (mode === base && base !== 'ecb') || (ivgen === 'essiv') !== (hash !== undefined)) {
    refuse(`cipher-mode '${mode}' is not supported`, Errno.ENOTSUP);
  }
  return {
    mode: base as CipherSpec['mode'],
    ivgen: ivgen as CipherSpec['ivgen'],
    ivgenHash: hash === undefined ? undefined : knownHash(hash, 'the essiv hash of cipher-mode'),
  };
}

function parseSlot(
  bytes: Uint8Array,
  view: DataView,
  number: number,
  hash: string,
  keyBytes: Bytes,
): LuksKeySlot | undefined {
  const start = At.SLOTS + number * SLOT_BYTES;
  const active = view.getUint32(start + SlotAt.ACTIVE);
  if (active === INACTIVE) return undefined;
  if (active !== ACTIVE) refuse(`active of key slot ${number} is 0x${active.toString(16)}, neither of its two values`);
  const iterations = view.getUint32(start + SlotAt.ITERATIONS);
  checkIterations(`iterations of key slot ${number}`, iterations, roundsOf(hash, keyBytes), SLOT_ROUNDS_MAX);
  const stripes = view.getUint32(start + SlotAt.STRIPES);
  if (stripes < 1 || stripes > STRIPES) {
    refuse(`stripes of key slot ${number} is ${stripes}; it must be 1 to ${STRIPES}`);
  }
  const at = slotPlace(bytes, number);
  return { iterations, salt: bytes.slice(start + SlotAt.SALT, start + SlotAt.SALT + SALT_BYTES), at, stripes };
}

function checkIterations(field: string, iterations: number, rounds: number, roundsMax: number): void {
  const most = Math.floor(roundsMax / rounds);
  if (iterations < 1 || iterations > most) refuse(`${field} is ${iterations}; it must be 1 to ${most}`);
}

/** Key material lies behind the header, in front of the payload and not in other key material. */
function checkPlaces(
  slots: readonly (LuksKeySlot | undefined)[],
  keyBytes: Bytes,
  length: Bytes,
  payloadAt: Offset,
): void {
  const places = slots.flatMap((slot, number) =>
    slot ? [{ number, at: slot.at, end: slot.at + slot.stripes * keyBytes }] : [],
  );
  if (places.length === 0) refuse('none of its key slots is in use');
  for (const { number, at, end } of places) {
    const field = `key-material-offset of key slot ${number} is ${at / SECTOR} sectors`;
    if (at < LUKS_HEADER_BYTES) refuse(`${field}, inside the header`);
    if (end > length) refuse(`${field}; the key material ends behind the ${length} bytes that there are`);
    if (end > payloadAt) refuse(`payload-offset is ${payloadAt / SECTOR} sectors, not behind key slot ${number}`);
    const other = places.find((place) => place.number < number && place.at < end && at < place.end);
    if (other) refuse(`${field}, inside key slot ${other.number}`);
  }
}

/** A name in a field of its own. EINVAL for what is none, so that messages can show it. */
function nameAt(bytes: Uint8Array, at: number, field: string): string {
  const name = textAt(bytes, at, NAME_BYTES);
  if (!/^[\w:.-]{1,31}$/.test(name)) refuse(`${field} is not a name`);
  return name;
}

/** Up to the first NUL; byte by byte. */
function textAt(bytes: Uint8Array, at: number, length: Bytes): string {
  const [text] = String.fromCharCode(...bytes.subarray(at, at + length)).split('\0');
  return text!;
}
