/** For tests: a file in memory that counts what is asked of it, and a qcow2 driver that notices errors of the wrong
 *  kind. */
import { PageStore } from '../../aio/sim/pages.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Prng } from '../../base/prng.ts';
import { type Bytes, GiB, type Offset } from '../../base/units.ts';
import type { Driver, DriverNode, OpenContext, StatusResult, Supported } from '../../block/driver.ts';
import { registerDriver } from '../../block/registry.ts';
import { type Qcow2Node, qcow2Driver } from './driver.ts';
import type { Qcow2Options } from './options.ts';
import { registerQcow2 } from './testing.ts';

/** As a file system has it. */
const LENGTH_MAX = 16 * 1024 * GiB;

/** The bytes of a file, and what has been done to it. */
export class CountedFile {
  store = new PageStore();
  opens = 0;
  ops = 0;
  /** Read and written. */
  bytes: Bytes = 0;
  changes = 0;
  /** More is refused with EDOM, which nothing else here answers. */
  opsMax = Number.MAX_SAFE_INTEGER;
  bytesMax = Number.MAX_SAFE_INTEGER;
  /** When set, some operations end later. */
  prng: Prng | undefined;

  constructor(bytes: Uint8Array) {
    this.store.write(0, bytes);
  }

  get spent(): boolean {
    return this.ops > this.opsMax || this.bytes > this.bytesMax;
  }

  content(): Uint8Array {
    const bytes = new Uint8Array(this.store.size);
    this.store.read(0, bytes);
    return bytes;
  }
}

const files = new Map<string, CountedFile>();

/** A file that the options `{ driver: 'counted', file: name }` refer to. */
export function countedFile(name: string, bytes: Uint8Array): CountedFile {
  const file = new CountedFile(bytes);
  files.set(name, file);
  return file;
}

class CountedNode implements DriverNode {
  readonly #context: OpenContext;
  readonly #file: CountedFile;
  length: Bytes;

  constructor(context: OpenContext, file: CountedFile) {
    this.#context = context;
    this.#file = file;
    this.length = file.store.size;
    file.opens++;
  }

  #step(bytes: Bytes, end: Offset, changes: boolean): Promise<void> | undefined {
    const file = this.#file;
    file.ops++;
    file.bytes += bytes;
    if (file.spent) throw new BlockError(Errno.EDOM, 'Could not go on: more operations than allowed');
    if (changes) file.changes++;
    if (end > LENGTH_MAX) throw new BlockError(Errno.EFBIG, `Could not write up to ${end}: File too large`);
    return file.prng?.chance(0.2) ? this.#context.aio.yield() : undefined;
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    await this.#step(iov.length, 0, false);
    const bytes = new Uint8Array(iov.length);
    this.#file.store.read(at, bytes);
    iov.copyFrom(bytes);
  }

  async pwritev(at: Offset, iov: Iov): Promise<void> {
    await this.#step(iov.length, at + iov.length, true);
    const bytes = new Uint8Array(iov.length);
    iov.copyTo(bytes);
    this.#file.store.write(at, bytes);
  }

  async zero(at: Offset, length: Bytes): Promise<Supported> {
    await this.#step(0, at + length, true);
    this.#file.store.zero(at, length, true);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    await this.#step(0, at + length, true);
    this.#file.store.zero(at, length, true);
    return 'done';
  }

  async flush(): Promise<void> {
    await this.#step(0, 0, false);
  }

  status(at: Offset, want: Bytes, out: StatusResult): void {
    const extent = this.#file.store.extent(at, want);
    out.kind = extent > 0 ? 'data' : 'zero';
    out.length = Math.abs(extent);
  }

  async truncate(length: Bytes): Promise<void> {
    await this.#step(0, length, true);
    this.#file.store.resize(length);
    this.length = length;
  }

  grew(end: Offset): void {
    this.length = Math.max(this.length, end);
  }
}

const countedDriver: Driver<{ file: string }> = {
  name: 'counted',
  role: 'protocol',
  options: { file: { type: 'string', required: true, help: 'name of the file' } },
  open: (context, options) => new CountedNode(context, files.get(options.file)!),
};

/** Whatever was thrown that is no BlockError: our own mistakes, of which the block layer makes EIO. */
export const mistakes: unknown[] = [];

function note(error: unknown): never {
  if (!(error instanceof BlockError)) mistakes.push(error);
  throw error;
}

const WATCHED = [
  'map',
  'reserve',
  'preadv',
  'writeCompressed',
  'zero',
  'discard',
  'flush',
  'truncate',
  'amend',
] as const;

/** Makes every function of a node tell of errors that are mistakes. */
function watch(node: Qcow2Node): DriverNode {
  const functions = node as unknown as Record<string, (...args: unknown[]) => unknown>;
  for (const name of WATCHED) {
    const inner = functions[name]!.bind(node);
    functions[name] = (...args) => {
      try {
        const result = inner(...args);
        return result instanceof Promise ? result.catch(note) : result;
      } catch (error) {
        return note(error);
      }
    };
  }
  return node;
}

const watchedDriver: Driver<Qcow2Options> = {
  ...qcow2Driver,
  name: 'qcow2-watched',
  open: async (context, options) => {
    try {
      return watch((await qcow2Driver.open(context, options)) as Qcow2Node);
    } catch (error) {
      return note(error);
    }
  },
};

/** Idempotent. */
export function registerCounted(): void {
  registerQcow2();
  registerDriver(countedDriver);
  registerDriver(watchedDriver);
}
