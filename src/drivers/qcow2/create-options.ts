/** What can be asked of a new image, and what goes together. */
import { BlockError, Errno } from '../../base/errors.ts';
import { alignUp, type Bytes, isOffset, isPowerOfTwo, KiB, SECTOR } from '../../base/units.ts';
import type { OptionSpec } from '../../block/driver.ts';
import {
  BACKING_FORMAT_MAX,
  CLUSTER_BITS_MAX,
  CLUSTER_BITS_MIN,
  DATA_FILE_NAME_MAX,
  EXTENDED_CLUSTER_BITS_MIN,
} from '../../proto/qcow2/constants.ts';
import { encodeName } from '../../proto/qcow2/text.ts';

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

/** The options by their names, of the types that `createOptions` says. */
export interface Qcow2CreateOptions {
  readonly size: Bytes;
  readonly compat?: '0.10' | '1.1' | 'v2' | 'v3';
  readonly 'cluster-size'?: Bytes;
  readonly 'backing-file'?: string;
  readonly 'backing-fmt'?: string;
  readonly 'data-file'?: string;
  readonly 'data-file-raw'?: boolean;
  readonly 'extended-l2'?: boolean;
  readonly 'lazy-refcounts'?: boolean;
  readonly 'refcount-bits'?: number;
  readonly 'compression-type'?: 'zlib' | 'zstd';
  readonly preallocation?: Preallocation;
  readonly 'encrypt.format'?: 'luks' | 'aes';
  readonly 'encrypt.key'?: string;
  readonly 'encrypt.cipher-alg'?: string;
  readonly 'encrypt.cipher-mode'?: string;
  readonly 'encrypt.ivgen-alg'?: string;
  readonly 'encrypt.ivgen-hash-alg'?: string;
  readonly 'encrypt.hash-alg'?: string;
  readonly 'encrypt.iter-time'?: number;
}

const CLUSTER_SIZE = 64 * KiB;
const REFCOUNT_BITS = 16;

export const createOptions: Readonly<Record<keyof Qcow2CreateOptions, OptionSpec>> = {
  size: { type: 'size', required: true, help: "bytes of the guest's disk; rounded up to a multiple of 512" },
  compat: {
    type: 'enum',
    values: ['0.10', '1.1', 'v2', 'v3'],
    help: 'version of the format: 0.10 is v2, 1.1 v3 (1.1)',
  },
  'cluster-size': { type: 'size', help: 'bytes of a cluster: a power of two, 512 to 2 MiB (64 KiB)' },
  'backing-file': { type: 'string', help: 'name of the image below' },
  'backing-fmt': { type: 'string', help: 'driver of the image below' },
  'data-file': { type: 'string', help: 'name of the external data file' },
  'data-file-raw': { type: 'boolean', help: 'the external data file is a raw image by itself; preallocates metadata' },
  'extended-l2': { type: 'boolean', help: 'allocate in subclusters, 32 of a cluster' },
  'lazy-refcounts': { type: 'boolean', help: 'write refcounts late, under the dirty bit' },
  'refcount-bits': { type: 'number', help: 'bits of a refcount: a power of two, 1 to 64 (16)' },
  'compression-type': { type: 'enum', values: ['zlib', 'zstd'], help: 'how clusters are compressed (zlib)' },
  preallocation: {
    type: 'enum',
    values: ['off', 'metadata', 'falloc', 'full'],
    help: 'what is allocated: nothing, a place for everything, room on the disk, or written zeroes (off)',
  },
  'encrypt.format': { type: 'enum', values: ['luks', 'aes'], help: 'encryption; aes is for reading old images only' },
  'encrypt.key': { type: 'secret', help: 'passphrase' },
  'encrypt.cipher-alg': { type: 'string', help: 'cipher (aes-256)' },
  'encrypt.cipher-mode': { type: 'string', help: 'mode of the cipher (xts)' },
  'encrypt.ivgen-alg': { type: 'string', help: 'how initialisation vectors are made (plain64)' },
  'encrypt.ivgen-hash-alg': { type: 'string', help: 'hash for initialisation vectors, where they need one (sha256)' },
  'encrypt.hash-alg': { type: 'string', help: 'hash of the key derivation (sha256)' },
  'encrypt.iter-time': { type: 'number', help: 'milliseconds that a try of a passphrase takes (2000)' },
};

/** Options that have been checked against each other, with the defaults. */
export interface CreatePlan {
  readonly size: Bytes;
  readonly version: 2 | 3;
  readonly clusterSize: Bytes;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly dataFile: string | undefined;
  readonly dataFileRaw: boolean;
  readonly extendedL2: boolean;
  readonly lazyRefcounts: boolean;
  readonly refcountBits: number;
  readonly compressionType: 0 | 1;
  readonly preallocation: Preallocation;
  /** Undefined where nothing is encrypted. */
  readonly passphrase: string | undefined;
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not create the image: ${why}`);
}

/** EINVAL says which option is wrong, or which two do not go together. */
export function planOf(options: Qcow2CreateOptions): CreatePlan {
  const raw = options['data-file-raw'] ?? false;
  const asked = options.preallocation ?? 'off';
  const plan: CreatePlan = {
    size: alignUp(options.size, SECTOR),
    version: options.compat === '0.10' || options.compat === 'v2' ? 2 : 3,
    clusterSize: options['cluster-size'] ?? CLUSTER_SIZE,
    backingFile: options['backing-file'],
    backingFormat: options['backing-fmt'],
    dataFile: options['data-file'],
    dataFileRaw: raw,
    extendedL2: options['extended-l2'] ?? false,
    lazyRefcounts: options['lazy-refcounts'] ?? false,
    refcountBits: options['refcount-bits'] ?? REFCOUNT_BITS,
    compressionType: options['compression-type'] === 'zstd' ? 1 : 0,
    // With every table there, the disk is the data file, byte by byte: what the raw bit promises.
    preallocation: raw && asked === 'off' ? 'metadata' : asked,
    passphrase: passphraseOf(options),
  };
  checkNumbers(plan);
  if (plan.version === 2) checkVersion2(plan);
  checkFiles(plan);
  if (plan.passphrase !== undefined) checkEncryption(plan);
  return plan;
}

function passphraseOf(options: Qcow2CreateOptions): string | undefined {
  const format = options['encrypt.format'];
  const key = options['encrypt.key'];
  if (format === undefined) {
    const stray = Object.keys(options).find((name) => name.startsWith('encrypt.'));
    if (stray !== undefined) throw refusal(`'${stray}' needs 'encrypt.format'`);
    return undefined;
  }
  if (format === 'aes') throw refusal("'encrypt.format' aes is for reading old images only; luks is the one to take");
  if (key === undefined) throw refusal("'encrypt.format' needs 'encrypt.key'");
  return key;
}

function checkNumbers(plan: CreatePlan): void {
  const { size, clusterSize, refcountBits } = plan;
  if (!isOffset(size)) throw refusal(`'size' is ${size}; it must be less than 2^53`);
  if (!isPowerOfTwo(clusterSize) || clusterSize < 2 ** CLUSTER_BITS_MIN || clusterSize > 2 ** CLUSTER_BITS_MAX) {
    throw refusal(`'cluster-size' is ${clusterSize}, not a power of two from 512 to 2097152 (2 MiB)`);
  }
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw refusal(`'refcount-bits' is ${refcountBits}, not a power of two from 1 to 64`);
  }
  if (plan.extendedL2 && clusterSize < 2 ** EXTENDED_CLUSTER_BITS_MIN) {
    throw refusal(`'extended-l2' needs a 'cluster-size' of ${2 ** EXTENDED_CLUSTER_BITS_MIN} or more`);
  }
}

function checkVersion2(plan: CreatePlan): void {
  const wrong = [
    plan.lazyRefcounts && "'lazy-refcounts'",
    plan.extendedL2 && "'extended-l2'",
    plan.refcountBits !== REFCOUNT_BITS && `'refcount-bits' ${plan.refcountBits}`,
    plan.dataFile !== undefined && "'data-file'",
    plan.compressionType !== 0 && "'compression-type' zstd",
  ].find((what) => what !== false);
  if (wrong !== undefined) throw refusal(`${wrong} needs 'compat' 1.1`);
}

function checkFiles(plan: CreatePlan): void {
  const { backingFile, backingFormat, dataFile, dataFileRaw } = plan;
  if (backingFormat !== undefined) {
    if (backingFile === undefined) throw refusal("'backing-fmt' needs 'backing-file'");
    checkName('backing-fmt', backingFormat, BACKING_FORMAT_MAX);
  }
  // Its longest length depends on the cluster size as well: encodeHeader() looks.
  if (backingFile === '') throw refusal("'backing-file' is an empty name");
  if (dataFile !== undefined) checkName('data-file', dataFile, DATA_FILE_NAME_MAX);
  if (dataFileRaw && dataFile === undefined) throw refusal("'data-file-raw' needs 'data-file'");
  if (dataFileRaw && backingFile !== undefined) throw refusal("'data-file-raw' and 'backing-file' exclude each other");
  if (backingFile !== undefined && plan.preallocation !== 'off' && !plan.extendedL2) {
    throw refusal("'preallocation' and 'backing-file' go together with 'extended-l2' only");
  }
}

function checkName(option: string, name: string, longest: number): void {
  const { length } = encodeName(name);
  if (length < 1 || length > longest) {
    throw refusal(`'${option}' is a name of ${length} bytes; it must have 1 to ${longest}`);
  }
}

function checkEncryption(plan: CreatePlan): void {
  if (plan.dataFileRaw) throw refusal("'data-file-raw' and 'encrypt.format' exclude each other");
  // The bytes of a new cluster do not decrypt to zeroes, so its entry has to say that it reads as such.
  if (plan.version === 2 && plan.preallocation !== 'off') {
    throw refusal("'preallocation' of an encrypted image needs 'compat' 1.1");
  }
}
