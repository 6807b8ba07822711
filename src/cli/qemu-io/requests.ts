/** Reads, writes and discards. */
import { closeSync, openSync, readSync } from 'node:fs';
import { BlockError, errnoText } from '../../base/errors.ts';
import type { VerbLine } from '../qemu-img/verb.ts';
import { type Command, Failed, Fatal, Misused } from './command.ts';
import { assertSectors, lengthOf, lengthsOf, patternOf, sizeOf } from './numbers.ts';
import { dump, REPORT, report } from './report.ts';
import type { Session } from './session.ts';

const own = {
  vmState: { short: 'b' },
  /** Without effect: what they choose is the only way here. */
  older: { short: 'p' },
  registered: { short: 'r' },
  show: { short: 'v' },
  pattern: { short: 'P', argument: 'required' },
  from: { short: 's', argument: 'required' },
  length: { short: 'l', argument: 'required' },
  file: { short: 's', argument: 'required' },
  compressed: { short: 'c' },
  fua: { short: 'f' },
  noFallback: { short: 'n' },
  mayUnmap: { short: 'u' },
  zeroes: { short: 'z' },
  invalid: { short: 'i' },
} as const;

/** What memory holds that nobody said anything about. */
const FILLING = 0xcd;

const { quiet, machine } = REPORT;

/** What is to be compared with a pattern. */
interface Expected {
  readonly pattern: number;
  readonly from: number;
  readonly length: number;
}

export const read: Command = {
  ...{ name: 'read', alias: 'r', least: 2, most: Number.POSITIVE_INFINITY },
  form: '[-bCqrv] [-P pattern [-s off] [-l len]] off len',
  about: 'reads bytes at an offset',
  options: [quiet, machine, ...[own.vmState, own.older, own.registered, own.show], own.pattern, own.from, own.length],
  async run(line, session) {
    const [at, bytes] = rangeOf(line, '');
    const pattern = patternOf(line.value(own.pattern));
    const [from, length] = [line.value(own.from), line.value(own.length)];
    if (pattern === undefined && (from !== undefined || length !== undefined)) throw new Misused();
    const start = from === undefined ? 0 : sizeOf(from);
    const expected =
      pattern === undefined
        ? undefined
        : {
            ...{ pattern, from: start },
            length: length === undefined ? bytes - start : sizeOf(length),
          };
    if (expected && (expected.length < 0 || start + expected.length > bytes)) {
      throw new Failed('pattern verification range exceeds end of read data');
    }
    if (line.has(own.vmState)) refuseVmState('read', at, bytes);
    await readPart(line, session, { at, lengths: [bytes], expected, name: 'read' });
  },
};

export const readv: Command = {
  ...{ name: 'readv', least: 2, most: Number.POSITIVE_INFINITY },
  form: '[-Cqrv] [-P pattern] off len [len..]',
  about: 'reads bytes at an offset, into several parts of memory',
  options: [quiet, machine, own.registered, own.show, own.pattern],
  async run(line, session) {
    const { at, lengths } = partsOf(line);
    await readPart(line, session, { at, lengths, expected: wholeExpected(line, lengths), name: 'readv' });
  },
};

export const aioRead: Command = {
  ...{ name: 'aio_read', least: 2, most: Number.POSITIVE_INFINITY },
  form: '[-Ciqrv] [-P pattern] off len [len..]',
  about: 'begins to read; aio_flush waits for the end',
  options: [quiet, machine, own.invalid, own.registered, own.show, own.pattern],
  async run(line, session) {
    if (line.has(own.invalid)) return session.terminal.out('injecting invalid read request\n');
    const { at, lengths } = partsOf(line);
    const expected = wholeExpected(line, lengths);
    await session.detach(told(session, readPart(line, session, { at, lengths, expected, name: 'readv' })));
  },
};

export const write: Command = {
  ...{ name: 'write', alias: 'w', least: 2, most: Number.POSITIVE_INFINITY, writes: true },
  form: '[-bcCfnqruz] [-P pattern | -s source_file] off len',
  about: 'writes bytes at an offset',
  options: [
    ...[quiet, machine, own.vmState, own.older, own.registered, own.compressed, own.fua, own.noFallback],
    ...[own.mayUnmap, own.zeroes, own.pattern, own.file],
  ],
  async run(line, session) {
    const pattern = patternOf(line.value(own.pattern));
    const file = line.value(own.file);
    assertWrite(line);
    const big = line.has(own.zeroes) && line.has(own.noFallback);
    const [at, bytes] = rangeOf(line, ' without -n', big);
    if (line.has(own.vmState)) refuseVmState('write', at, bytes);
    if (line.has(own.compressed) && !line.has(own.zeroes)) {
      assertSectors(at, 'offset');
      assertSectors(bytes, 'count');
    }
    const fill = file === undefined ? filling(pattern) : repeated(file, bytes);
    await writePart(line, session, { at, lengths: [bytes], fill, name: 'write' });
  },
};

export const writev: Command = {
  ...{ name: 'writev', least: 2, most: Number.POSITIVE_INFINITY, writes: true },
  form: '[-Cfqr] [-P pattern] off len [len..]',
  about: 'writes bytes at an offset, from several parts of memory',
  options: [quiet, machine, own.fua, own.registered, own.pattern],
  async run(line, session) {
    const pattern = patternOf(line.value(own.pattern));
    await writePart(line, session, { ...partsOf(line), fill: filling(pattern), name: 'writev' });
  },
};

export const aioWrite: Command = {
  ...{ name: 'aio_write', least: 2, most: Number.POSITIVE_INFINITY, writes: true },
  form: '[-Cfiqruz] [-P pattern] off len [len..]',
  about: 'begins to write; aio_flush waits for the end',
  options: [quiet, machine, own.fua, own.invalid, own.registered, own.mayUnmap, own.zeroes, own.pattern],
  async run(line, session) {
    const pattern = patternOf(line.value(own.pattern));
    if (line.has(own.invalid)) return session.terminal.out('injecting invalid write request\n');
    if (line.has(own.zeroes) && line.operands.length !== 2) {
      throw new Failed('-z supports only a single length parameter');
    }
    if (line.has(own.mayUnmap) && !line.has(own.zeroes)) throw new Failed('-u requires -z to be specified');
    const parts = line.has(own.zeroes) ? zeroesOf(line) : partsOf(line);
    await session.detach(
      told(session, writePart(line, session, { ...parts, fill: filling(pattern), name: 'aio_write' })),
    );
  },
};

export const discard: Command = {
  ...{ name: 'discard', alias: 'd', least: 2, most: Number.POSITIVE_INFINITY, writes: true },
  form: '[-Cq] off len',
  about: 'discards bytes at an offset',
  options: [quiet, machine],
  async run(line, session) {
    const [at, bytes] = rangeOf(line, '');
    const ms = await timed('discard', () => session.image.discard(at, bytes));
    report(line, session.terminal, { verb: 'discard', at, bytes, ms });
  },
};

interface Part {
  readonly at: number;
  readonly lengths: readonly number[];
  /** Of the command, in its messages. */
  readonly name: string;
}

async function readPart(
  line: VerbLine,
  { image, terminal }: Session,
  { at, lengths, expected, name }: Part & { readonly expected: Expected | undefined },
): Promise<void> {
  let bytes: Uint8Array = new Uint8Array();
  const ms = await timed(name, async () => {
    bytes = await image.read(at, lengths);
  });
  const same = expected === undefined || isFilled(bytes, expected);
  if (!same) {
    terminal.out(`Pattern verification failed at offset ${at + expected.from}, ${expected.length} bytes\n`);
  }
  if (!line.has(quiet) && line.has(own.show)) dump(terminal, bytes, at);
  report(line, terminal, { verb: 'read', at, bytes: bytes.length, ms });
  if (!same) throw new Failed('');
}

function isFilled(bytes: Uint8Array, { pattern, from, length }: Expected): boolean {
  for (let at = from; at < from + length; at++) if (bytes[at] !== pattern) return false;
  return true;
}

async function writePart(
  line: VerbLine,
  { image, terminal }: Session,
  { at, lengths, fill, name }: Part & { readonly fill: (bytes: Uint8Array) => void },
): Promise<void> {
  const bytes = lengths.reduce((sum, length) => sum + length, 0);
  const fua = line.has(own.fua);
  const zeroes = { fua, mayUnmap: line.has(own.mayUnmap), noFallback: line.has(own.noFallback) };
  const ms = await timed(name, () =>
    line.has(own.zeroes)
      ? image.writeZeroes(at, bytes, zeroes)
      : image.write(at, lengths, fill, { fua, compressed: line.has(own.compressed) }),
  );
  report(line, terminal, { verb: 'wrote', at, bytes, ms });
}

/** Milliseconds that it took. */
async function timed(name: string, body: () => Promise<void>): Promise<number> {
  const began = performance.now();
  try {
    await body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    if (error.where.op === 'verify') throw new Fatal(error.message);
    throw new Failed(`${name} failed: ${errnoText(error.errno)}`);
  }
  return performance.now() - began;
}

/** Of a request that nobody waits for: what became of it is printed, and no matter of the command. */
async function told(session: Session, request: Promise<void>): Promise<void> {
  try {
    await request;
  } catch (error) {
    if (error instanceof Fatal) {
      session.fatal = error;
      return;
    }
    const text = error instanceof Error ? error.message : String(error);
    if (text !== '') session.terminal.out(`${text}\n`);
  }
}

function rangeOf({ operands }: VerbLine, unless: string, big = false): [at: number, bytes: number] {
  if (operands.length !== 2) throw new Misused();
  const at = sizeOf(operands[0]!);
  return [at, big ? sizeOf(operands[1]!) : lengthOf(operands[1]!, unless)];
}

function partsOf({ operands }: VerbLine): { readonly at: number; readonly lengths: readonly number[] } {
  if (operands.length < 2) throw new Misused();
  return { at: sizeOf(operands[0]!), lengths: lengthsOf(operands.slice(1)) };
}

function zeroesOf({ operands }: VerbLine): { readonly at: number; readonly lengths: readonly number[] } {
  return { at: sizeOf(operands[0]!), lengths: [sizeOf(operands[1]!)] };
}

function wholeExpected(line: VerbLine, lengths: readonly number[]): Expected | undefined {
  const pattern = patternOf(line.value(own.pattern));
  return pattern === undefined ? undefined : { pattern, from: 0, length: lengths.reduce((sum, one) => sum + one, 0) };
}

function assertWrite(line: VerbLine): void {
  const { vmState, zeroes, fua, compressed, noFallback, mayUnmap, pattern, file } = own;
  const fault = (text: string): never => {
    throw new Failed(text);
  };
  if (line.has(vmState) && line.has(zeroes)) fault('-b and -z cannot be specified at the same time');
  if (line.has(fua) && (line.has(vmState) || line.has(compressed))) {
    fault('-f and -b or -c cannot be specified at the same time');
  }
  if (line.has(noFallback) && !line.has(zeroes)) fault('-n requires -z to be specified');
  if (line.has(mayUnmap) && !line.has(zeroes)) fault('-u requires -z to be specified');
  if ([zeroes, pattern, file].filter((def) => line.has(def)).length > 1) {
    fault('Only one of -z, -P, and -s can be specified at the same time');
  }
}

/** Saved states of machines are kept, and not made. */
function refuseVmState(name: string, at: number, bytes: number): never {
  assertSectors(at, 'offset');
  assertSectors(bytes, 'count');
  throw new Failed(`${name} failed: Operation not supported`);
}

function filling(pattern = FILLING): (bytes: Uint8Array) => void {
  return (bytes) => bytes.fill(pattern);
}

/** What is in a file, over and over. */
function repeated(path: string, most: number): (bytes: Uint8Array) => void {
  const source = beginningOf(path, most);
  if (source.length === 0) throw new Failed(`${path}: file is empty`, 'err');
  return (bytes) => {
    for (let at = 0; at < bytes.length; at += source.length) bytes.set(source.subarray(0, bytes.length - at), at);
  };
}

/** At most `most` bytes, and one where `most` is 0. */
function beginningOf(path: string, most: number): Uint8Array {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    throw new Failed(`${path}: ${errnoText((error as { errno?: number }).errno ?? 0)}`, 'err');
  }
  try {
    const bytes = new Uint8Array(Math.max(1, most));
    let length = 0;
    for (let got = -1; got !== 0 && length < bytes.length; length += got)
      got = readSync(fd, bytes, length, bytes.length - length, null);
    return bytes.subarray(0, length);
  } finally {
    closeSync(fd);
  }
}
