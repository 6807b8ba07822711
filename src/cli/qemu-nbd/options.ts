/** The options of qemu-nbd, in the order and with the complaints of the original. */

import { keyval } from '../../lib/keyval.ts';
import type { CacheMode, DetectZeroes, Discard } from '../../lib/options.ts';
import type { CommandLine, OptionDef } from '../getopt.ts';

/** What is printed behind the program's name, before exit code 1. */
export class Failure extends Error {
  override readonly name = 'Failure';
}

const flag = (short: string | undefined, long: string) => ({ ...(short ? { short } : {}), long }) as const;
const value = (short: string | undefined, long: string) => ({ ...flag(short, long), argument: 'required' }) as const;

export const Option = {
  help: flag('h', 'help'),
  version: flag('V', 'version'),
  bind: value('b', 'bind'),
  port: value('p', 'port'),
  socket: value('k', 'socket'),
  offset: value('o', 'offset'),
  readOnly: flag('r', 'read-only'),
  bitmap: value('B', 'bitmap'),
  connect: value('c', 'connect'),
  disconnect: flag('d', 'disconnect'),
  list: flag('L', 'list'),
  snapshot: flag('s', 'snapshot'),
  loadSnapshot: value('l', 'load-snapshot'),
  noCache: flag('n', 'nocache'),
  cache: value(undefined, 'cache'),
  aio: value(undefined, 'aio'),
  discard: value(undefined, 'discard'),
  detectZeroes: value(undefined, 'detect-zeroes'),
  shared: value('e', 'shared'),
  format: value('f', 'format'),
  persistent: flag('t', 'persistent'),
  verbose: flag('v', 'verbose'),
  object: value(undefined, 'object'),
  exportName: value('x', 'export-name'),
  description: value('D', 'description'),
  tlsCreds: value(undefined, 'tls-creds'),
  tlsHostname: value(undefined, 'tls-hostname'),
  tlsAuthz: value(undefined, 'tls-authz'),
  imageOpts: flag(undefined, 'image-opts'),
  trace: value('T', 'trace'),
  fork: flag(undefined, 'fork'),
  pidFile: value(undefined, 'pid-file'),
  selinuxLabel: value(undefined, 'selinux-label'),
  allocationDepth: flag('A', 'allocation-depth'),
  handshakeLimit: value(undefined, 'handshake-limit'),
} as const satisfies Record<string, OptionDef>;

export const OPTIONS: readonly OptionDef[] = Object.values(Option);

export type AioMode = 'threads' | 'native' | 'io_uring';

/** An internal snapshot: by its id, its name, or what is either. */
export interface WantedSnapshot {
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly either?: string | undefined;
}

export interface NbdOptions {
  readonly bind: string | undefined;
  readonly port: string | undefined;
  readonly socket: string | undefined;
  /** Bytes. */
  readonly offset: number;
  readonly readOnly: boolean;
  readonly bitmaps: readonly string[];
  readonly connect: string | undefined;
  readonly disconnect: boolean;
  readonly list: boolean;
  readonly temporary: boolean;
  readonly snapshot: WantedSnapshot | undefined;
  readonly cache: CacheMode | undefined;
  readonly aio: AioMode | undefined;
  readonly discard: Discard | undefined;
  readonly detectZeroes: DetectZeroes | undefined;
  /** Clients at a time; 0 for any number. */
  readonly shared: number;
  readonly format: string | undefined;
  readonly persistent: boolean;
  /** Texts of --object, in order. */
  readonly objects: readonly string[];
  readonly exportName: string | undefined;
  readonly description: string | undefined;
  readonly tlsCreds: string | undefined;
  readonly tlsHostname: string | undefined;
  readonly tlsAuthz: string | undefined;
  readonly imageOpts: boolean;
  readonly fork: boolean;
  readonly pidFile: string | undefined;
  readonly selinuxLabel: string | undefined;
  readonly allocationDepth: boolean;
  readonly handshakeSeconds: number | undefined;
}

/** Clients at a time: what `int` holds, and what the server takes. */
const SHARED_MAX = 2 ** 31 - 1;

/** Reads the values of the options, one after the other. Throws {@link Failure} for the first that is wrong. */
export function readOptions({ options }: CommandLine<OptionDef>): NbdOptions {
  const has = (def: OptionDef): boolean => options.some((one) => one.def === def);
  const all = (def: OptionDef): string[] => options.filter((one) => one.def === def).map((one) => one.value ?? '');
  const last = (def: OptionDef): string | undefined => all(def).at(-1);
  for (const { def, value: text = '' } of options) checkOne(def, text);
  if (all(Option.cache).length + Number(has(Option.noCache)) > 1 || manyOf(options, Option.noCache)) {
    throw new Failure('-n and --cache can only be specified once');
  }
  if (manyOf(options, Option.aio)) throw new Failure('--aio can only be specified once');
  if (manyOf(options, Option.discard)) throw new Failure('--discard can only be specified once');
  const discard = discardMode(last(Option.discard));
  const detectZeroes = last(Option.detectZeroes) as DetectZeroes | undefined;
  if (detectZeroes === 'unmap' && discard !== 'unmap') {
    throw new Failure('setting detect-zeroes to unmap is not allowed without setting discard operation to unmap');
  }
  const snapshot = last(Option.loadSnapshot);
  const shared = last(Option.shared);
  const handshake = last(Option.handshakeLimit);
  return {
    bind: last(Option.bind),
    port: last(Option.port),
    socket: last(Option.socket),
    offset: Number(last(Option.offset) ?? 0),
    readOnly: has(Option.readOnly) || snapshot !== undefined,
    bitmaps: [...new Set(all(Option.bitmap))],
    connect: last(Option.connect),
    disconnect: has(Option.disconnect),
    list: has(Option.list),
    temporary: has(Option.snapshot),
    snapshot: snapshot === undefined ? undefined : wantedSnapshot(snapshot),
    cache: has(Option.noCache) ? 'none' : (last(Option.cache) as CacheMode | undefined),
    aio: last(Option.aio) as AioMode | undefined,
    ...{ discard, detectZeroes },
    shared: shared === undefined ? 1 : wholeNumber(shared)!,
    format: last(Option.format),
    persistent: has(Option.persistent),
    objects: all(Option.object),
    exportName: last(Option.exportName),
    description: last(Option.description),
    tlsCreds: last(Option.tlsCreds),
    tlsHostname: last(Option.tlsHostname),
    tlsAuthz: last(Option.tlsAuthz),
    imageOpts: has(Option.imageOpts),
    fork: has(Option.fork),
    pidFile: last(Option.pidFile),
    selinuxLabel: last(Option.selinuxLabel),
    allocationDepth: has(Option.allocationDepth),
    handshakeSeconds: handshake === undefined ? undefined : wholeNumber(handshake)!,
  };
}

function manyOf(options: CommandLine<OptionDef>['options'], def: OptionDef): boolean {
  return options.filter((one) => one.def === def).length > 1;
}

function checkOne(def: OptionDef, text: string): void {
  switch (def) {
    case Option.cache:
      oneOf(text, ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'], `Invalid cache mode \`${text}'`);
      break;
    case Option.aio:
      oneOf(text, ['threads', 'native', 'io_uring'], `Invalid aio mode '${text}'`);
      break;
    case Option.discard:
      oneOf(text, ['ignore', 'off', 'unmap', 'on'], `Invalid discard mode \`${text}'`);
      break;
    case Option.detectZeroes: {
      const wrong = `Failed to parse detect_zeroes mode: invalid parameter value: ${text}`;
      oneOf(text, ['off', 'on', 'unmap'], wrong);
      break;
    }
    case Option.offset:
      if (wholeNumber(text) === undefined) throw new Failure(`Invalid offset '${text}'`);
      break;
    case Option.socket:
      if (!text.startsWith('/')) throw new Failure('socket path must be absolute');
      break;
    case Option.shared:
      if ((wholeNumber(text) ?? Infinity) > SHARED_MAX) throw new Failure(`Invalid shared device number '${text}'`);
      break;
    case Option.loadSnapshot:
      wantedSnapshot(text);
      break;
    case Option.handshakeLimit:
      if ((wholeNumber(text) ?? Infinity) > SHARED_MAX) throw new Failure(`Invalid handshake limit '${text}'`);
      break;
    default:
  }
}

function oneOf(text: string, allowed: readonly string[], wrong: string): void {
  if (!allowed.includes(text)) throw new Failure(wrong);
}

function discardMode(text: string | undefined): Discard | undefined {
  if (text === undefined) return undefined;
  return text === 'unmap' || text === 'on' ? 'unmap' : 'ignore';
}

/** Decimal, hexadecimal or octal, as strtoull(3) takes them with base 0. */
function wholeNumber(text: string): number | undefined {
  const octal = /^\s*\+?0([0-7]+)$/.exec(text)?.[1];
  const number = octal !== undefined ? Number.parseInt(octal, 8) : plainNumber(text);
  return Number.isSafeInteger(number) ? number : undefined;
}

function plainNumber(text: string): number {
  return /^\s*\+?(0x[\da-f]+|\d+)$/i.test(text) ? Number(text.trim().replace('+', '')) : Number.NaN;
}

function wantedSnapshot(text: string): WantedSnapshot {
  if (!text.startsWith('snapshot.')) return { either: text };
  try {
    const { snapshot } = keyval(text) as { readonly snapshot: Readonly<Record<string, string>> };
    const { id, name, ...others } = snapshot;
    const stray = Object.keys(others)[0];
    if (stray !== undefined) throw new Error(`Invalid parameter 'snapshot.${stray}'`);
    return { id, name };
  } catch (error) {
    throw new Failure(`${(error as Error).message}\nqemu-nbd: Failed in parsing snapshot param \`${text}'`);
  }
}
