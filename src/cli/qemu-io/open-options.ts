/** How an image is to be opened, as the program's options and those of `open` say it. */
import type { IoOpenHow } from '../../img/io.ts';
import type { OptionDef } from '../getopt.ts';
import { cacheModeOf } from '../qemu-img/targets.ts';
import type { VerbLine } from '../qemu-img/verb.ts';
import { Failed } from './command.ts';

export const OPEN = {
  readOnly: { short: 'r', long: 'read-only' },
  temporary: { short: 's', long: 'snapshot' },
  noCache: { short: 'n', long: 'nocache' },
  copyOnRead: { short: 'C', long: 'copy-on-read' },
  native: { short: 'k', long: 'native-aio' },
  aio: { short: 'i', long: 'aio', argument: 'required' },
  cache: { short: 't', long: 'cache', argument: 'required' },
  discard: { short: 'd', long: 'discard', argument: 'required' },
  forceShare: { short: 'U', long: 'force-share' },
} as const satisfies Readonly<Record<string, OptionDef>>;

const AIO = ['threads', 'native', 'io_uring'];

/** `target`: what the image is called in messages. Throws {@link Failed}. */
export function openHow(line: VerbLine, target: string): IoOpenHow {
  const cache = line.has(OPEN.noCache) ? 'none' : cacheOf(line, OPEN.cache);
  const native = assertAio(line);
  if (native && cache !== 'none' && cache !== 'directsync') {
    const why = 'aio=native was specified, but it requires cache.direct=on, which was not specified.';
    throw new Failed(`qemu-io: ${target}: ${why}`, 'err');
  }
  const readOnly = line.has(OPEN.readOnly);
  const copyOnRead = line.has(OPEN.copyOnRead);
  if (copyOnRead && readOnly) {
    throw new Failed(`qemu-io: ${target}: Can't use copy-on-read on read-only device`, 'err');
  }
  return {
    ...{ write: !readOnly, cache, discard: discardOf(line), copyOnRead },
    ...{ temporary: line.has(OPEN.temporary), forceShare: line.has(OPEN.forceShare) },
  };
}

export function cacheOf(line: VerbLine, def: OptionDef): IoOpenHow['cache'] {
  const value = line.value(def);
  const mode = value === undefined ? undefined : cacheModeOf(value);
  if (value !== undefined && mode === undefined) throw new Failed(`qemu-io: Invalid cache option: ${value}`, 'err');
  return mode;
}

function discardOf(line: VerbLine): 'ignore' | 'unmap' {
  const given = line.value(OPEN.discard) ?? 'unmap';
  if (given === 'unmap' || given === 'on') return 'unmap';
  if (given === 'ignore' || given === 'off') return 'ignore';
  throw new Failed(`qemu-io: Invalid discard option: ${given}`, 'err');
}

/** Which way of doing I/O it is, is ours to say: whether `native` was asked for. */
function assertAio(line: VerbLine): boolean {
  const given = line.value(OPEN.aio);
  if (given !== undefined && !AIO.includes(given)) throw new Failed(`qemu-io: Invalid aio option: ${given}`, 'err');
  return line.has(OPEN.native) || given === 'native';
}
