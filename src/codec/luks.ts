/**
 * LUKS, version 1: unlocking a volume with a passphrase, and making the header of a new one. [LUKS1 on-disk format]
 *
 * Deriving a key takes seconds, and is done in one of Node's own threads; the context of the caller goes on meanwhile.
 */
import { pbkdf2, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { alignUp, type Bytes, KiB, type Offset, SECTOR } from '../base/units.ts';
import { aesSectors } from './aes-sectors.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import {
  DIGEST_BYTES,
  DIGEST_ROUNDS_MAX,
  encodeLuksHeader,
  KEY_SLOTS,
  knownHash,
  LUKS_HEADER_BYTES,
  type LuksHeader,
  type LuksKeySlot,
  parseLuksHeader,
  roundsOf,
  SALT_BYTES,
  SLOT_ROUNDS_MAX,
  STRIPES,
} from './luks-header.ts';
import { type CipherSpec, keyLengths, type SectorCipher } from './sector-cipher.ts';

/** What can be asked of a new volume; undefined for the default. Names are those of QEMU's options. */
export interface LuksOptions {
  /** aes-256. */
  readonly cipher: string | undefined;
  /** xts. */
  readonly mode: string | undefined;
  /** plain64. */
  readonly ivgen: string | undefined;
  /** Of essiv: sha256. */
  readonly ivgenHash: string | undefined;
  /** Of the key derivation: sha256. */
  readonly hash: string | undefined;
  /** Milliseconds that a try of a passphrase takes on this machine: 2000. */
  readonly iterTime: number | undefined;
}

/** Key material begins at multiples of this. */
const KEY_ALIGNMENT: Bytes = 4 * KiB;
const ITERATIONS_MIN = 1000;
const ITER_TIME_MS = 2000;
/** How long a measurement takes at least; the fastest of so many counts, as what disturbs only makes slower. */
const MEASURE_MS = 20;
const MEASUREMENTS = 3;

/** The cipher of a volume. `read` reads its header, which has `length` bytes with its key material. EINVAL for a
 *  damaged header, ENOTSUP for what it asks for and is not there, EACCES for a wrong passphrase. */
export async function luksCipher(
  read: (at: Offset, length: Bytes) => Promise<Uint8Array>,
  length: Bytes,
  passphrase: Uint8Array,
): Promise<SectorCipher> {
  const header = parseLuksHeader(await read(0, Math.min(length, LUKS_HEADER_BYTES)), length);
  for (const slot of header.slots) {
    if (!slot) continue;
    const material = await read(slot.at, slot.stripes * header.keyBytes);
    const key = await openSlot(header, slot, material, passphrase);
    const digest = await digestOf(header, key);
    if (timingSafeEqual(digest, header.digest)) return aesSectors(header.cipher, key);
  }
  throw new BlockError(Errno.EACCES, 'Could not unlock the image: no key slot opens with this passphrase');
}

/** A new header with its key material: all bytes in front of the payload. One key slot is in use. EINVAL, ENOTSUP. */
export async function createLuks(
  options: LuksOptions,
  passphrase: Uint8Array,
): Promise<{ readonly bytes: Uint8Array }> {
  const { cipher, hash, keyBytes, iterTime } = checked(options);
  const slotBytes = alignUp(keyBytes * STRIPES, KEY_ALIGNMENT);
  const placeOf = (slot: number): Offset => KEY_ALIGNMENT + slot * slotBytes;
  const key = new Uint8Array(randomBytes(keyBytes));
  const rounds = (await roundsPerMs(hash)) * iterTime;
  const iterationsFor = (length: Bytes, wanted: number, most: number): number =>
    Math.max(ITERATIONS_MIN, Math.floor(Math.min(wanted, most) / roundsOf(hash, length)));
  const slot: LuksKeySlot = {
    iterations: iterationsFor(keyBytes, rounds, SLOT_ROUNDS_MAX),
    ...{ salt: new Uint8Array(randomBytes(SALT_BYTES)), at: placeOf(0), stripes: STRIPES },
  };
  const unsigned: LuksHeader = {
    ...{ cipher, hash, keyBytes, uuid: randomUUID(), payloadAt: placeOf(KEY_SLOTS) },
    ...{ digest: new Uint8Array(DIGEST_BYTES), digestSalt: new Uint8Array(randomBytes(SALT_BYTES)) },
    // The master key is no passphrase, and cannot be guessed: its digest need not take as long.
    digestIterations: iterationsFor(DIGEST_BYTES, rounds / 8, DIGEST_ROUNDS_MAX),
    slots: Array.from({ length: KEY_SLOTS }, (_, i) => (i === 0 ? slot : undefined)),
  };
  const header: LuksHeader = { ...unsigned, digest: await digestOf(unsigned, key) };
  const bytes = new Uint8Array(header.payloadAt);
  bytes.set(encodeLuksHeader(header, placeOf));
  const material = bytes.subarray(slot.at, slot.at + alignUp(keyBytes * STRIPES, SECTOR));
  material.set(splitKey(key, STRIPES, hash));
  (await slotCipher(header, slot, passphrase)).encrypt(material, 0);
  return { bytes };
}

/** The master key, if the passphrase is the slot's. */
async function openSlot(
  header: LuksHeader,
  slot: LuksKeySlot,
  material: Uint8Array,
  passphrase: Uint8Array,
): Promise<Uint8Array> {
  // Its last sector may not be whole; in no mode does what follows matter.
  const sectors = new Uint8Array(alignUp(material.length, SECTOR));
  sectors.set(material);
  (await slotCipher(header, slot, passphrase)).decrypt(sectors, 0);
  return mergeKey(sectors.subarray(0, material.length), slot.stripes, header.hash);
}

/** Key material is encrypted as the payload is, with sectors of its own. */
async function slotCipher(header: LuksHeader, slot: LuksKeySlot, passphrase: Uint8Array): Promise<SectorCipher> {
  return aesSectors(header.cipher, await derive(header.hash, passphrase, slot.salt, slot.iterations, header.keyBytes));
}

function digestOf({ hash, digestSalt, digestIterations }: LuksHeader, key: Uint8Array): Promise<Uint8Array> {
  return derive(hash, key, digestSalt, digestIterations, DIGEST_BYTES);
}

function derive(
  hash: string,
  secret: Uint8Array,
  salt: Uint8Array,
  iterations: number,
  length: Bytes,
): Promise<Uint8Array> {
  const gate = new Gate<Uint8Array>();
  pbkdf2(secret, salt, iterations, length, hash, (error, key) => {
    if (error) gate.fail(new BlockError(Errno.EIO, 'Could not derive a key', { cause: error }));
    else gate.open(key);
  });
  return gate.promise;
}

async function roundsPerMs(hash: string): Promise<number> {
  const salt = new Uint8Array(SALT_BYTES);
  let best = 0;
  for (let rounds = ITERATIONS_MIN, left = MEASUREMENTS; left > 0; ) {
    const start = performance.now();
    await derive(hash, salt, salt, rounds, 1);
    const ms = performance.now() - start;
    if (ms < MEASURE_MS) {
      rounds *= 2;
      continue;
    }
    best = Math.max(best, rounds / ms);
    left--;
  }
  return best;
}

/** The options, with defaults. EINVAL says which one is wrong, ENOTSUP which one is not there. */
function checked(options: LuksOptions): {
  readonly cipher: CipherSpec;
  readonly hash: string;
  readonly keyBytes: Bytes;
  readonly iterTime: number;
} {
  const { cipher = 'aes-256', mode = 'xts', ivgen = 'plain64', ivgenHash = 'sha256', hash = 'sha256' } = options;
  const { iterTime = ITER_TIME_MS } = options;
  const size = ['aes-128', 'aes-192', 'aes-256'].indexOf(cipher);
  if (size < 0) throw unsupported('cipher-alg', cipher);
  if (mode !== 'xts' && mode !== 'cbc' && mode !== 'ecb') throw unsupported('cipher-mode', mode);
  if (ivgen !== 'plain' && ivgen !== 'plain64' && ivgen !== 'essiv') throw unsupported('ivgen-alg', ivgen);
  if (!(iterTime >= 1)) {
    throw new BlockError(
      Errno.EINVAL,
      `Could not create the image: 'iter-time' is ${iterTime}, less than 1 millisecond`,
    );
  }
  const keyBytes = keyLengths(mode)[size]!;
  if ((keyBytes * STRIPES) % SECTOR !== 0) {
    // The format has no rule for its last, half sector: others cannot read such a volume.
    throw unsupported('cipher-alg', `aes-192 with 'cipher-mode' ${mode}`);
  }
  return {
    cipher: { mode, ivgen, ivgenHash: ivgen === 'essiv' ? knownHash(ivgenHash, 'ivgen-hash-alg') : undefined },
    hash: knownHash(hash, 'hash-alg'),
    keyBytes,
    iterTime,
  };
}

function unsupported(option: string, value: string): BlockError {
  return new BlockError(Errno.ENOTSUP, `Could not create the image: '${option}' ${value} is not supported`);
}
