/** Commands about the image, and how it is open. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { vmStateOffset } from '../../img/io.ts';
import type { ImageSpec } from '../../img/open.ts';
import { specificLines } from '../qemu-img/info-output.ts';
import { isProtocol } from '../qemu-img/messages.ts';
import { type Command, Failed, Misused } from './command.ts';
import { sizeOf, sizeText } from './numbers.ts';
import { cacheOf, OPEN, openHow } from './open-options.ts';

const MODE = { short: 'm', argument: 'required' } as const;
const PREALLOCATION = ['off', 'metadata', 'falloc', 'full'];

export const truncate: Command = {
  ...{ name: 'truncate', alias: 't', least: 1, most: 3, writes: true },
  form: '[-m prealloc_mode] off',
  about: 'changes the size of the image',
  options: [MODE],
  async run(line, { image }) {
    const mode = line.value(MODE) ?? 'off';
    if (!PREALLOCATION.includes(mode)) throw new Failed(`qemu-io: Invalid preallocation mode '${mode}'`, 'err');
    if (line.operands.length !== 1) throw new Misused();
    const bytes = sizeOf(line.operands[0]!);
    if (mode === 'metadata') throw new Failed(`qemu-io: Unsupported preallocation mode: ${mode}`, 'err');
    try {
      await image.truncate(bytes, mode as 'off' | 'falloc' | 'full');
    } catch (error) {
      throw error instanceof BlockError ? new Failed(`qemu-io: ${error.message}`, 'err') : error;
    }
  },
};

export const length: Command = {
  ...{ name: 'length', alias: 'l', least: 0, most: 0 },
  about: 'shows the size of the disk',
  run: (_, { image, terminal }) => terminal.out(`${sizeText(image.length)}\n`),
};

export const info: Command = {
  ...{ name: 'info', alias: 'i', least: 0, most: 0 },
  about: 'shows what is known of the image',
  async run(_, { image, terminal }) {
    const { format, qcow2 } = await image.info();
    const clusterSize = qcow2?.clusterSize ?? 0;
    const state = qcow2 ? vmStateOffset(image.length, clusterSize, qcow2.extendedL2) : 0;
    const lines = [
      `format name: ${format}`,
      ...(isProtocol(format) ? [`format name: ${format}`] : []),
      `cluster size: ${sizeText(clusterSize)}`,
      `vm state offset: ${sizeText(state)}`,
      ...(qcow2 ? specificLines(qcow2) : []),
    ];
    terminal.out(`${lines.join('\n')}\n`);
  },
};

export const alloc: Command = {
  ...{ name: 'alloc', least: 1, most: 2 },
  form: 'offset [count]',
  about: 'counts the bytes that the image itself holds',
  async run({ operands: [offset, count] }, { image, terminal }) {
    const at = sizeOf(offset!);
    const wanted = count === undefined ? 512 : sizeOf(count);
    const bytes = Math.max(0, Math.min(wanted, image.length - at));
    let held = 0;
    for await (const extent of image.allocations(at, bytes)) if (extent.allocated) held += extent.length;
    terminal.out(`${held}/${bytes} bytes allocated at offset ${sizeText(at)}\n`);
  },
};

export const map: Command = {
  ...{ name: 'map', least: 0, most: 0 },
  about: 'lists what the image itself holds',
  async run(_, { image, terminal }) {
    const shown = (bytes: number): string => `0x${bytes.toString(16)}`;
    for await (const { at, length: bytes, allocated } of image.allocations(0, image.length)) {
      terminal.out(
        `${sizeText(bytes)} (${shown(bytes)}) bytes ${allocated ? '    ' : 'not '}allocated ` +
          `at offset ${sizeText(at)} (${shown(at)})\n`,
      );
    }
  },
};

export const flush: Command = {
  ...{ name: 'flush', alias: 'f', least: 0, most: 0 },
  about: 'brings all that was written to stable storage',
  async run(_, { image }) {
    try {
      await image.flush();
    } catch (error) {
      throw error instanceof BlockError ? new Failed(`qemu-io: ${errnoText(error.errno)}`, 'err') : error;
    }
  },
};

export const aioFlush: Command = {
  ...{ name: 'aio_flush', least: 0, most: 0 },
  about: 'waits for all requests that were begun',
  run: (_, session) => session.settle(),
};

const DRIVER_OPTIONS = { short: 'o', argument: 'required' } as const;

export const open: Command = {
  ...{ name: 'open', alias: 'o', least: 1, most: Number.POSITIVE_INFINITY, withoutFile: true },
  form: '[-rsCnkU] [-t cache] [-d discard] [-o options] [path]',
  about: 'opens an image',
  // Without long forms.
  options: [...Object.values(OPEN), DRIVER_OPTIONS],
  async run(line, session) {
    const [name, ...rest] = line.operands;
    const options = line.values(DRIVER_OPTIONS).join(',');
    if (rest.length > 0 || (name === undefined && options === '')) throw new Misused();
    await session.open(
      specOf(name, options),
      openHow(line, `can't open${name === undefined ? '' : ` device ${name}`}`),
    );
  },
};

function specOf(name: string | undefined, options: string): ImageSpec {
  if (name === undefined) return { name: options, imageOpts: true };
  if (options === '') return { name };
  const [, format] = /^driver=([^,]+)$/.exec(options) ?? [];
  if (format !== undefined) return { name, format };
  return { name: `${options},file.filename=${name.replaceAll(',', ',,')}`, imageOpts: true };
}

export const close: Command = {
  ...{ name: 'close', alias: 'c', least: 0, most: 0 },
  about: 'closes the image',
  run: (_, session) => session.close(),
};

const REOPEN = {
  readOnly: { short: 'r' },
  writable: { short: 'w' },
  cache: { short: 'c', argument: 'required' },
} as const;

export const reopen: Command = {
  ...{ name: 'reopen', least: 0, most: Number.POSITIVE_INFINITY },
  form: '[(-r|-w)] [-c cache] [-o options]',
  about: 'changes how the image is open',
  options: [...Object.values(REOPEN), DRIVER_OPTIONS],
  async run(line, session) {
    const access = line.options.filter(({ def }) => def === REOPEN.readOnly || def === REOPEN.writable);
    if (access.length > 1) throw new Failed('qemu-io: Only one -r/-w option may be given', 'err');
    const cache = cacheOf(line, REOPEN.cache);
    if (line.operands.length > 0) throw new Misused();
    const [option] = line.values(DRIVER_OPTIONS);
    if (option !== undefined) {
      throw new Failed(`qemu-io: Cannot change the option '${option.split('=', 1)[0]}'`, 'err');
    }
    const before = session.how;
    const write = access.length === 0 ? before.write : line.has(REOPEN.writable);
    if (write === before.write && (cache === undefined || cache === before.cache)) return;
    // The layer that is gone with the image cannot be found again.
    if (before.temporary) throw new Failed("qemu-io: Cannot change the option 'read-only'", 'err');
    await session.reopen({ ...before, write, cache: cache ?? before.cache });
  },
};
