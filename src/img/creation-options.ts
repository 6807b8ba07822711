/** Options of new images as the command lines of image tools have them: `cluster_size=64k,preallocation=metadata`. */
import { BlockError, Errno } from '../base/errors.ts';
import { splitOptions } from '../block/text-options.ts';
import { readSize } from './sizes.ts';

/** One option, with the value that it has where nobody gives one. */
interface CreationOption {
  readonly name: string;
  readonly type: 'string' | 'size' | 'number' | 'boolean';
  readonly value?: string;
  /** Of the driver, where that is not the name with '-' for '_'; null: it is accepted, and changes nothing here. */
  readonly driver?: string | null;
  readonly help: string;
}

const SIZE: CreationOption = { name: 'size', type: 'size', help: 'bytes of the disk' };
const PREALLOCATION = 'what is allocated at once';

const FILE: readonly CreationOption[] = [
  { name: 'nocow', type: 'boolean', driver: null, help: 'accepted, and of no effect' },
  { name: 'extent_size_hint', type: 'size', driver: null, help: 'accepted, and of no effect' },
];

const QCOW2: readonly CreationOption[] = [
  { name: 'encryption', type: 'boolean', driver: null, help: 'encrypt.format=aes, which is not made any more' },
  { name: 'encrypt.format', type: 'string', help: 'luks' },
  { name: 'encrypt.key-secret', type: 'string', help: 'id of the secret with the passphrase' },
  { name: 'encrypt.cipher-alg', type: 'string', help: 'cipher' },
  { name: 'encrypt.cipher-mode', type: 'string', help: 'mode of the cipher' },
  { name: 'encrypt.ivgen-alg', type: 'string', help: 'how initialisation vectors are made' },
  { name: 'encrypt.ivgen-hash-alg', type: 'string', help: 'hash for initialisation vectors' },
  { name: 'encrypt.hash-alg', type: 'string', help: 'hash of the key derivation' },
  { name: 'encrypt.iter-time', type: 'number', help: 'milliseconds that a try of a passphrase takes' },
  { name: 'cluster_size', type: 'size', value: '65536', help: 'bytes of a cluster' },
  { name: 'extended_l2', type: 'boolean', value: 'off', help: 'allocate in 32nds of a cluster' },
  { name: 'preallocation', type: 'string', help: `${PREALLOCATION}: off, metadata, falloc, full` },
  { name: 'compression_type', type: 'string', value: 'zlib', help: 'how clusters are compressed: zlib, zstd' },
  SIZE,
  { name: 'compat', type: 'string', help: 'version of the format: v2 (0.10) or v3 (1.1)' },
  { name: 'backing_file', type: 'string', help: 'the image below' },
  { name: 'backing_fmt', type: 'string', help: 'its format' },
  { name: 'data_file', type: 'string', help: 'a file that holds the data' },
  { name: 'data_file_raw', type: 'boolean', help: 'the data file is to be a raw image by itself' },
  { name: 'lazy_refcounts', type: 'boolean', value: 'off', help: 'write refcounts late' },
  { name: 'refcount_bits', type: 'number', value: '16', help: 'bits of a refcount' },
];

/** In the order in which they are shown. */
const FORMATS: Readonly<Record<string, readonly CreationOption[]>> = {
  qcow2: [...QCOW2, ...FILE],
  raw: [
    SIZE,
    FILE[0]!,
    { name: 'preallocation', type: 'string', help: `${PREALLOCATION}: off, falloc, full` },
    FILE[1]!,
  ],
};

/** Of a format with images that can be made; undefined for others. */
export function creationOptionsOf(format: string): readonly CreationOption[] | undefined {
  return FORMATS[format === 'file' ? 'raw' : format];
}

/** Options of one new image. What is given last counts. */
export class CreationOptions {
  readonly format: string;
  readonly #known: readonly CreationOption[];
  readonly #values = new Map<string, string>();

  /** `bare`: only what is given, without the values of a new image. */
  constructor(format: string, bare = false) {
    this.format = format;
    this.#known = creationOptionsOf(format) ?? [];
    if (bare) return;
    for (const { name, value } of this.#known) if (value !== undefined) this.#values.set(name, value);
  }

  /** Reads `name=value,...`; a name alone is on, with 'no' in front off. EINVAL. */
  read(texts: readonly string[]): void {
    for (const part of texts.flatMap(splitOptions)) {
      const [, given = '', value] = /^([^=]*)(?:=(.*))?$/s.exec(part) ?? [];
      const off = value === undefined && given.startsWith('no') && this.#find(given) === undefined;
      this.set(off ? given.slice(2) : given, value ?? (off ? 'off' : 'on'));
    }
  }

  /** EINVAL where there is no such option, or the value is of another type. */
  set(name: string, value: string): void {
    const option = this.#find(name);
    if (!option) throw refusal(`Invalid parameter '${name.split(',', 1)[0]}'`);
    checkedValue(option, value);
    this.#values.set(name, value);
  }

  /** Names of all that have a value. */
  get given(): readonly string[] {
    return [...this.#values.keys()];
  }

  has(name: string): boolean {
    return this.#find(name) !== undefined;
  }

  get(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** Of the whole disk; undefined where nobody has said it. */
  get size(): number | undefined {
    const text = this.#values.get('size');
    return text === undefined ? undefined : (readSize(text) as number);
  }

  /** `cluster_size=65536 size=1048576`: all that have a value, in the format's order. */
  get text(): string {
    return this.#known
      .flatMap(({ name, type }) => {
        const value = this.#values.get(name);
        if (value === undefined) return [];
        return [`${name}=${type === 'size' ? readSize(value) : value.replaceAll(',', ',,')}`];
      })
      .join(' ');
  }

  /** By the names of the driver, without those that nobody gave. */
  get driverOptions(): Record<string, unknown> {
    const entries = this.#known.flatMap((option) => {
      const value = this.#values.get(option.name);
      if (value === undefined || option.driver === null) return [];
      return [[option.driver ?? option.name.replaceAll('_', '-'), checkedValue(option, value)] as const];
    });
    return Object.fromEntries(entries);
  }

  #find(name: string): CreationOption | undefined {
    return this.#known.find((option) => option.name === name);
  }
}

function checkedValue({ name, type }: CreationOption, value: string): unknown {
  switch (type) {
    case 'size': {
      const bytes = readSize(value);
      if (typeof bytes === 'number') return bytes;
      throw refusal(
        `Parameter '${name}' expects a non-negative number below 2^64\n` +
          'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.',
      );
    }
    case 'number':
      if (/^\d+$/.test(value)) return Number(value);
      throw refusal(`Parameter '${name}' expects a number`);
    case 'boolean':
      if (/^(on|yes|true|y)$/.test(value)) return true;
      if (/^(off|no|false|n)$/.test(value)) return false;
      throw refusal(`Parameter '${name}' expects 'on' or 'off'`);
    default:
      return value;
  }
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
