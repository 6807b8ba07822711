/** raw: the image is the file, or a window of it. It has no I/O code: everything is where `map` says. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type {
  Child,
  DebugEvent,
  Driver,
  DriverNode,
  Mapping,
  MapReason,
  MaybePromise,
  OpenContext,
  Supported,
} from '../../block/driver.ts';
import { GUARDED_BYTES, HeadGuard } from './head-guard.ts';

export interface RawOptions {
  /** Where the window begins in the file. Default 0. */
  readonly offset?: Bytes;
  /** How long it is. Default: up to the end of the file. */
  readonly size?: Bytes;
  /** The format is a guess: see HeadGuard. */
  readonly guessed?: boolean;
}

class RawNode implements DriverNode {
  readonly window = true;
  readonly #file: Child;
  readonly #offset: Bytes;
  readonly #size: Bytes | undefined;
  readonly #guarded: Bytes;

  constructor(file: Child, offset: Bytes, size: Bytes | undefined, guard: HeadGuard | undefined) {
    this.#file = file;
    this.#offset = offset;
    this.#size = size;
    this.#guarded = guard ? GUARDED_BYTES : 0;
    if (guard) Object.assign(this, this.#guardedBy(guard));
    // Growing is up to the file; a window of a given size cannot.
    if (size !== undefined) (this as DriverNode).grew = undefined as never;
  }

  get length(): Bytes {
    return this.#size ?? Math.max(0, this.#file.length - this.#offset);
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    // A write that is refused writes nothing: it goes whole to the guard.
    if (at < this.#guarded && why === 'write') out.other('opaque', want);
    else out.data(want, this.#file, at + this.#offset);
  }

  debugEvent(event: DebugEvent): MaybePromise<void> {
    return this.#file.point(event);
  }

  grew(_end: Offset): void {}

  inactivate(): Record<string, unknown> {
    return {};
  }

  /** What begins in the guarded bytes goes through the guard, which passes flags on. */
  #guardedBy(guard: HeadGuard): Partial<DriverNode> {
    const file = this.#file;
    return {
      nativeFua: true,
      pwritev: guard.write.bind(guard),
      zero: async (at, length, flags): Promise<Supported> => {
        if (at < GUARDED_BYTES) await guard.zero(at, length, flags);
        else await file.writeZeroes(at + this.#offset, length, flags);
        return 'done';
      },
      discard: async (at, length): Promise<Supported> => {
        await file.discard(at + this.#offset, length);
        return 'done';
      },
    };
  }

  async truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    if (this.#size !== undefined) throw new BlockError(Errno.ENOTSUP, "Could not resize: the option 'size' fixes it");
    await this.#file.truncate(length + this.#offset, prealloc);
  }
}

export const rawDriver: Driver<RawOptions> = {
  name: 'raw',
  role: 'format',
  children: { file: 'filtered' },
  reopenOptions: ['offset', 'size'],
  options: {
    offset: { type: 'size', help: 'where the image begins in the file, in bytes' },
    size: { type: 'size', help: 'length of the image in bytes (default: to the end of the file)' },
    guessed: { type: 'boolean', help: 'the format was not given: no write may make it look like another one' },
  },
  probe: () => 1,
  async open(context: OpenContext, options: RawOptions): Promise<DriverNode> {
    const { offset = 0, size, guessed = false } = options;
    // Without a window it is a filter; with one the file has parts that are none of this image's business.
    const whole = offset === 0 && size === undefined;
    const file = await context.openChild('file', whole ? 'filtered' : 'data');
    if (!file) throw new BlockError(Errno.EINVAL, "Could not open a 'raw' node: option 'file' is missing");
    const refuse = (why: string): BlockError => new BlockError(Errno.EINVAL, `Could not open a 'raw' node: ${why}`);
    if (offset > file.length) throw refuse(`offset ${offset} is beyond the ${file.length} bytes of the file`);
    if (size !== undefined && size > file.length - offset) {
      throw refuse(`size ${size} from offset ${offset} is more than the ${file.length} bytes of the file`);
    }
    return new RawNode(file, offset, size, guessed ? new HeadGuard(context.aio, file, offset) : undefined);
  },
  createOptions: {
    size: { type: 'size', required: true, help: 'bytes of the image' },
    preallocation: {
      type: 'enum',
      values: ['off', 'falloc', 'full'],
      help: 'what is allocated: nothing, room on the disk, or written zeroes (off)',
    },
  },
  async create({ file }, options): Promise<void> {
    await file.truncate(0);
    await file.truncate(options.size as Bytes, options.preallocation as 'off' | 'falloc' | 'full' | undefined);
    await file.flush();
  },
};
