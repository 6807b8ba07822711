/** Options of functions on images as a whole, and what the drivers call them. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { CheckFix, CheckResult, OptionSpec, SnapshotInfo } from '../block/driver.ts';
import { splitOptions, typedValue } from '../block/text-options.ts';
import { createOptions } from '../drivers/qcow2/create-options.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { secretOption } from './objects/resolve.ts';
import type { Format } from './options.ts';

export type { CheckResult, OptionSpec, SnapshotInfo };

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

/** LUKS encryption of a new image. */
export interface EncryptOptions {
  readonly format: 'luks';
  /** Passphrase. */
  readonly key: string;
  /** Default aes-256, xts, plain64, sha256. */
  readonly cipherAlg?: string | undefined;
  readonly cipherMode?: string | undefined;
  readonly ivgenAlg?: string | undefined;
  readonly ivgenHashAlg?: string | undefined;
  readonly hashAlg?: string | undefined;
  /** Milliseconds that a try of a passphrase takes; default 2000. */
  readonly iterTime?: number | undefined;
}

/** What a new image is like. All but size and preallocation are of qcow2. */
export interface ImageOptions {
  /** Bytes, a multiple of 512 in qcow2. Default: as large as the backing file. */
  readonly size?: Bytes | undefined;
  readonly preallocation?: Preallocation | undefined;
  /** Version of qcow2: 0.10 is version 2, 1.1 (default) is version 3. */
  readonly compat?: '0.10' | '1.1' | undefined;
  /** Bytes: a power of two, 512 to 2 MiB. Default 64 KiB. */
  readonly clusterSize?: Bytes | undefined;
  /** Name of the image below; a relative name begins at the new image's directory. */
  readonly backingFile?: string | undefined;
  /** Needed with `backingFile`, unless that ends with .qcow2. */
  readonly backingFormat?: Format | undefined;
  /** Name of a file that holds the data; a relative name begins at the current directory, also when it is opened. */
  readonly dataFile?: string | undefined;
  /** The data file is a raw image by itself. */
  readonly dataFileRaw?: boolean | undefined;
  readonly extendedL2?: boolean | undefined;
  readonly lazyRefcounts?: boolean | undefined;
  /** A power of two, 1 to 64. Default 16. */
  readonly refcountBits?: number | undefined;
  readonly compressionType?: 'zlib' | 'zstd' | undefined;
  readonly encrypt?: EncryptOptions | undefined;
}

/** What can be changed of an image that is there. */
export interface AmendOptions {
  readonly compat?: '0.10' | '1.1' | undefined;
  readonly lazyRefcounts?: boolean | undefined;
  readonly refcountBits?: number | undefined;
  /** null: none. The name is written, and nothing is opened. */
  readonly backingFile?: string | null | undefined;
  readonly backingFormat?: Format | undefined;
}

export interface TruncateOptions {
  /** What is allocated of what is added: nothing (default), room on the disk, or written zeroes. */
  readonly preallocation?: 'off' | 'falloc' | 'full' | undefined;
}

export interface CheckOptions {
  /** Default: nothing is changed. */
  readonly repair?: 'leaks' | 'all' | undefined;
}

/** EINVAL for what cannot be repaired. */
export function fixOf({ repair }: CheckOptions): CheckFix {
  if (repair === undefined || repair === 'leaks' || repair === 'all') return repair ?? 'none';
  throw new BlockError(Errno.EINVAL, `Unknown repair '${repair}': use one of leaks, all`);
}

/** Names as the drivers have them: clusterSize is cluster-size, encrypt.cipherAlg is encrypt.cipher-alg. */
export function driverOptions(options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const named: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const kebab = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (name !== 'encrypt') named[kebab === 'backing-format' ? 'backing-fmt' : kebab] = value;
    else {
      for (const [part, own] of Object.entries(driverOptions({ ...(value as object) }))) named[`encrypt.${part}`] = own;
    }
  }
  return named;
}

/** What a new image of a format takes. */
export function createOptionSpecs(format: Format): Readonly<Record<string, OptionSpec>> {
  return format === 'qcow2' ? createOptions : (rawDriver.createOptions ?? {});
}

/**
 * Options of a format as `name=value,name=value`, more than once or not; names with '_' or '-', a comma in a value is
 * written twice. EINVAL.
 */
export function textOptions(format: Format, texts: readonly string[]): Record<string, unknown> {
  const specs = createOptionSpecs(format);
  const options: Record<string, unknown> = {};
  for (const part of texts.flatMap(splitOptions)) {
    const [, written = '', value = ''] = /^([^=]+)=(.*)$/s.exec(part) ?? [];
    const name = written.replaceAll('_', '-');
    const secret = secretOption(name);
    if (secret !== undefined && specs[secret]?.type === 'secret') {
      options[name] = value;
      continue;
    }
    if (name === 'encrypt.key' || !Object.hasOwn(specs, name)) {
      const known = Object.keys(specs).filter((one) => one !== 'encrypt.key');
      throw new BlockError(
        Errno.EINVAL,
        `Unknown option '${written || part}' of ${format}: there are ${known.join(', ')}`,
      );
    }
    options[name] = typedValue(name, value, specs[name]);
  }
  return options;
}
