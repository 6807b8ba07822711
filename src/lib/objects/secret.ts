/** `secret`: passwords and keys, by themselves or encrypted with another secret. What is in them is in no message. */
import { readSecretFile, secretText } from '../secret-file.ts';
import { ObjectKind, type ObjectType, wrong } from './object-type.ts';
import type { ObjectStore } from './store.ts';

export interface SecretOptions {
  readonly 'qom-type': 'secret';
  /** Letters, digits, '-', '.', '_', a letter first. */
  readonly id: string;
  /** The secret itself. Others see it on a command line: `file` is the safer way. */
  readonly data?: string | undefined;
  /** The file that it is in, every byte of it; at most 64 KiB. */
  readonly file?: string | undefined;
  /** How it is written. Default raw, as it is. */
  readonly format?: 'raw' | 'base64' | undefined;
  /** The secret with the key that it is encrypted with, AES-256-CBC: 32 bytes. */
  readonly keyid?: string | undefined;
  /** Of the encryption: 16 bytes in base64. */
  readonly iv?: string | undefined;
}

/** What a secret object holds. */
export class Secret {
  readonly #id: string;
  readonly #bytes: Uint8Array;

  constructor(id: string, bytes: Uint8Array) {
    this.#id = id;
    this.#bytes = bytes;
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** EINVAL for one that is not UTF-8. */
  get text(): string {
    const text = secretText(this.#bytes);
    if (text === undefined) throw wrong(`Data from secret ${this.#id} is not valid UTF-8`);
    return text;
  }
}

export const SECRET = new ObjectKind<Secret>('secret', 'a secret');

const KEY_BYTES = 32;
const BLOCK_BYTES = 16;

export const secretType: ObjectType<Secret> = {
  name: 'secret',
  kind: SECRET,
  options: {
    data: { type: 'secret', help: 'the secret' },
    file: { type: 'string', help: 'the file that it is in' },
    format: { type: 'enum', values: ['raw', 'base64'], help: 'how it is written (raw)' },
    keyid: { type: 'string', help: 'id of the secret that it is encrypted with' },
    iv: { type: 'string', help: 'initialisation vector of the encryption, in base64' },
  },
  async create(options, objects, id): Promise<Secret> {
    const { data, file, format, keyid, iv } = options as Partial<SecretOptions>;
    if (data !== undefined && file !== undefined) throw wrong("'file' and 'data' are mutually exclusive");
    if (data === undefined && file === undefined) throw wrong("Either 'file' or 'data' must be provided");
    const given = file === undefined ? new TextEncoder().encode(data) : readSecretFile(file);
    const bytes = format === 'base64' ? fromBase64(given) : given;
    return new Secret(id, keyid === undefined ? bytes : await decrypted(bytes, keyid, iv, objects));
  },
};

async function decrypted(
  bytes: Uint8Array,
  keyid: string,
  iv: string | undefined,
  objects: ObjectStore,
): Promise<Uint8Array> {
  const key = objects.get(keyid, SECRET).bytes;
  if (key.length !== KEY_BYTES) throw wrong(`Key should be ${KEY_BYTES} bytes in length`);
  if (iv === undefined) throw wrong('IV is required to decrypt secret');
  const vector = fromBase64(new TextEncoder().encode(iv));
  if (vector.length !== BLOCK_BYTES) throw wrong(`IV should be ${BLOCK_BYTES} bytes in length not ${vector.length}`);
  if (bytes.length === 0 || bytes.length % BLOCK_BYTES !== 0) {
    throw wrong(`Length ${bytes.length} must be a multiple of block size ${BLOCK_BYTES}`);
  }
  const { createDecipheriv } = await import('node:crypto');
  const decipher = createDecipheriv('aes-256-cbc', key, vector);
  try {
    const parts = [decipher.update(bytes), decipher.final()];
    return Uint8Array.from(parts.flatMap((part) => [...part]));
  } catch {
    throw wrong('Incorrect number of padding bytes found on decrypted data');
  }
}

function fromBase64(bytes: Uint8Array): Uint8Array {
  const text = new TextDecoder('latin1').decode(bytes);
  if (/[^A-Za-z0-9+/=\r\n]/.test(text)) throw wrong('Base64 data contains invalid characters');
  const packed = text.replace(/[\r\n]/g, '');
  if (packed.length % 4 !== 0 || !/^[^=]*={0,2}$/.test(packed)) throw wrong('Base64 data is not whole');
  return Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
}
