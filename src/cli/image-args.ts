/** Arguments that the verbs have in common, in the library's terms. */
import { closeSync, openSync, readSync } from 'node:fs';
import { textHttpSettings } from '../lib/http-options.ts';
import type { OptionSpec } from '../lib/image-options.ts';
import type { OpenMessage } from '../lib/messages.ts';
import { openMessage } from '../lib/open-message.ts';
import { FORMATS, type Format, type HttpSettings } from '../lib/options.ts';
import { REFERENCES, type ReferenceOptions } from '../lib/reference-policy.ts';
import { UsageError } from './report.ts';

/** As commander delivers them. */
export interface RawImageOptions {
  readonly format?: string;
  readonly references?: string;
  readonly allowDirectory?: readonly string[];
  readonly keyFile?: string;
  readonly httpOpts?: readonly string[];
}

/** No passphrase is longer; what is (a device, say) is not read to its end. */
const KEY_BYTES_MAX = 64 * 1024;

export function oneOf<T extends string>(value: string | undefined, allowed: readonly T[], what: string): T | undefined {
  if (value === undefined) return undefined;
  const found = allowed.find((entry) => entry === value);
  if (!found) throw new UsageError(`${what}: '${value}' is not one of ${allowed.join(', ')}`);
  return found;
}

export function formatOption(value: string | undefined, what = '--format'): Format | undefined {
  return oneOf(value, FORMATS, what);
}

export function referenceOptions(raw: RawImageOptions): ReferenceOptions {
  return {
    references: oneOf(raw.references, REFERENCES, '--references'),
    allowDirectories: raw.allowDirectory ?? [],
  };
}

/** How an image is opened to be changed. */
export function toChange(path: string, raw: RawImageOptions): OpenMessage {
  const qcow2 = { 'encrypt.key': readKey(raw.keyFile) };
  const http = httpOption(raw.httpOpts);
  return openMessage(path, { format: formatOption(raw.format), qcow2, http, ...referenceOptions(raw) });
}

/** Options of web servers; secrets are in files. Undefined where none are given. */
export function httpOption(texts: readonly string[] = []): HttpSettings | undefined {
  return texts.length === 0 ? undefined : textHttpSettings(texts, (path) => readKey(path, '--http-opts')!);
}

/** The passphrase in a file, all bytes of it. */
export function readKey(path: string | undefined, option = '--key-file'): string | undefined {
  if (path === undefined) return undefined;
  const bytes = Buffer.alloc(KEY_BYTES_MAX + 1);
  let length = 0;
  try {
    const fd = openSync(path, 'r');
    try {
      for (let read = -1; read !== 0 && length < bytes.length; length += read) {
        read = readSync(fd, bytes, length, bytes.length - length, null);
      }
    } finally {
      closeSync(fd);
    }
    if (length > KEY_BYTES_MAX) throw new Error(`it is longer than ${KEY_BYTES_MAX} bytes`);
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes.subarray(0, length));
  } catch (error) {
    throw new UsageError(`${option}: could not read '${path}': ${(error as Error).message}`);
  }
}

/** What `--help` says about `-o`. */
export function driverHelp(specs: Readonly<Record<string, OptionSpec>>): string {
  const names = Object.keys(specs).filter((name) => name !== 'encrypt.key');
  const width = Math.max(...names.map((name) => name.length));
  return names.map((name) => `  ${name.padEnd(width)}  ${specs[name]!.help}`).join('\n');
}
