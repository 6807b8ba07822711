/**
 * Rules in a file: sections `[inject-error]` and `[set-state]`, in each `name = "value"`, one in a line; a line that
 * begins with # is a comment.
 */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { BlockError, Errno, errnoOf, errnoText } from '../../base/errors.ts';
import { type Bytes, MiB } from '../../base/units.ts';
import type { OptionSpec } from '../../block/driver.ts';

/** Thousands of rules; what is longer (a disk, say) is not read. */
const CONFIG_BYTES_MAX: Bytes = MiB;

type Section = Record<string, unknown>;
type Members = Readonly<Record<string, OptionSpec>>;

/** The sections by their names, in their order. ENOENT and so on, EFBIG, EINVAL with the line. */
export async function readConfig(
  path: string,
  sections: Readonly<Record<string, Members>>,
): Promise<ReadonlyMap<string, readonly Section[]>> {
  return parseConfig(await readText(path), path, sections);
}

async function readText(path: string): Promise<string> {
  const failed = (errno: number, why: string, cause?: unknown): BlockError =>
    new BlockError(errno, `Could not read blkdebug config file '${path}': ${why}`, { cause });
  try {
    // Without O_NONBLOCK a FIFO would keep us waiting for its other end.
    const handle = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    try {
      const bytes = new Uint8Array(CONFIG_BYTES_MAX + 1);
      let length = 0;
      for (let read = -1; read !== 0 && length < bytes.length; length += read) {
        read = (await handle.read(bytes, length, bytes.length - length)).bytesRead;
      }
      if (length > CONFIG_BYTES_MAX) throw failed(Errno.EFBIG, `it is longer than ${CONFIG_BYTES_MAX} bytes`);
      return new TextDecoder().decode(bytes.subarray(0, length));
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (error instanceof BlockError) throw error;
    throw failed(errnoOf(error), errnoText(errnoOf(error)), error);
  }
}

/** `path`: what it is called in messages. */
export function parseConfig(
  text: string,
  path: string,
  sections: Readonly<Record<string, Members>>,
): ReadonlyMap<string, readonly Section[]> {
  const found = new Map<string, Section[]>(Object.keys(sections).map((name) => [name, []]));
  let members: Members | undefined;
  let section: Section = {};
  for (const [i, line] of text.split('\n').entries()) {
    const refuse = (why: string): BlockError =>
      new BlockError(Errno.EINVAL, `Could not use blkdebug config file '${path}': line ${i + 1}: ${why}`);
    if (/^\s*(#|$)/.test(line)) continue;
    const [, name] = /^\s*\[([^\s"\]]+)(?:\s+"[^"]*")?\]\s*$/.exec(line) ?? [];
    if (name !== undefined) {
      if (!Object.hasOwn(sections, name)) throw refuse(`there is no section '${name}'`);
      members = sections[name]!;
      section = {};
      found.get(name)!.push(section);
      continue;
    }
    const [, option, value] = /^\s*([^\s=]+)\s*=\s*"([^"]*)"\s*$/.exec(line) ?? [];
    if (option === undefined) throw refuse('it is neither [section] nor name = "value"');
    if (members === undefined) throw refuse('it belongs to no section');
    if (!Object.hasOwn(members, option)) throw refuse(`there is no option '${option}'`);
    section[option] = typed(value!, members[option]!, (what) => refuse(`'${option}' is '${value}', not ${what}`));
  }
  return found;
}

function typed(text: string, spec: OptionSpec, wrong: (what: string) => BlockError): unknown {
  switch (spec.type) {
    case 'number':
      if (!/^\s*-?\d+\s*$/.test(text)) throw wrong('a number');
      return Number(text);
    case 'boolean':
      if (text !== 'on' && text !== 'off') throw wrong('on or off');
      return text === 'on';
    default:
      if (!spec.values?.includes(text)) throw wrong(`one of ${spec.values?.join(', ')}`);
      return text;
  }
}
