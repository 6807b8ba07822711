/** Arguments that the verbs have in common, in the library's terms. */
import { textHttpSettings } from '../lib/http-options.ts';
import type { OptionSpec } from '../lib/image-options.ts';
import type { OpenMessage } from '../lib/messages.ts';
import { openMessage } from '../lib/open-message.ts';
import { FORMATS, type Format, type HttpSettings } from '../lib/options.ts';
import { REFERENCES, type ReferenceOptions } from '../lib/reference-policy.ts';
import { readSecretFile, secretText } from '../lib/secret-file.ts';
import { UsageError } from './report.ts';

/** As commander delivers them. */
export interface RawImageOptions {
  readonly format?: string;
  readonly references?: string;
  readonly allowDirectory?: readonly string[];
  readonly keyFile?: string;
  readonly httpOpts?: readonly string[];
}

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
  try {
    const text = secretText(readSecretFile(path));
    if (text !== undefined) return text;
  } catch (error) {
    throw new UsageError(`${option}: ${(error as Error).message}`);
  }
  throw new UsageError(`${option}: '${path}' is not UTF-8`);
}

/** What `--help` says about `-o`. */
export function driverHelp(specs: Readonly<Record<string, OptionSpec>>): string {
  const names = Object.keys(specs).filter((name) => name !== 'encrypt.key');
  const width = Math.max(...names.map((name) => name.length));
  return names.map((name) => `  ${name.padEnd(width)}  ${specs[name]!.help}`).join('\n');
}
