/** null-co (and null-aio): swallows writes; reads are zeroes, or what was in the memory. For tests and measuring. */
import type { AioContext } from '../../aio/context.ts';
import { type AioOp, Gate } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, GiB, type Nanoseconds, type Offset } from '../../base/units.ts';
import type { Driver, DriverNode, OpenContext, StatusResult, Supported } from '../../block/driver.ts';

export interface NullOptions {
  readonly size?: Bytes;
  readonly 'read-zeroes'?: boolean;
  readonly 'latency-ns'?: Nanoseconds;
}

class NullNode implements DriverNode {
  length: Bytes;
  readonly nativeFua = true;
  /** The length that its options say. */
  readonly #given: Bytes;
  readonly #aio: AioContext;
  readonly #zeroes: boolean;
  readonly #latency: Nanoseconds;

  constructor(aio: AioContext, options: NullOptions) {
    this.#aio = aio;
    this.#given = options.size ?? GiB;
    this.length = this.#given;
    this.#zeroes = options['read-zeroes'] ?? false;
    this.#latency = options['latency-ns'] ?? 0;
    if (this.#latency < 0) {
      throw new BlockError(Errno.EINVAL, `Could not open a null device: latency-ns is ${this.#latency}, below 0`);
    }
  }

  submitRead(op: AioOp, iov: Iov, _at: Offset): void {
    if (this.#zeroes) iov.fill(0);
    this.#end(op, iov.length);
  }

  submitWrite(op: AioOp, iov: Iov, _at: Offset, _flags: number): void {
    this.#end(op, iov.length);
  }

  async zero(): Promise<Supported> {
    await this.#wait();
    return 'done';
  }

  async discard(): Promise<Supported> {
    await this.#wait();
    return 'done';
  }

  async flush(): Promise<void> {
    await this.#wait();
  }

  status(_at: Offset, want: Bytes, out: StatusResult): void {
    out.kind = this.#zeroes ? 'zero' : 'data';
    out.length = want;
  }

  truncate(length: Bytes): void {
    this.length = length;
  }

  info(): Record<string, unknown> {
    return { allocated: 0 };
  }

  inactivate(): Record<string, unknown> {
    return this.length === this.#given ? {} : { size: this.length };
  }

  #end(op: AioOp, result: number): void {
    if (this.#latency === 0) this.#aio.completeLater(op, result);
    else this.#aio.timer(() => op.complete(result), 'null-co').armIn(this.#latency);
  }

  async #wait(): Promise<void> {
    if (this.#latency === 0) return;
    const gate = new Gate();
    this.#aio.timer(() => gate.open(), 'null-co').armIn(this.#latency);
    await gate.promise;
  }
}

export const nullDriver: Driver<NullOptions> = {
  name: 'null-co',
  role: 'protocol',
  options: {
    size: { type: 'size', help: 'size in bytes (default 1 GiB)' },
    'read-zeroes': { type: 'boolean', help: 'reads give zeroes (default: the memory is left as it is)' },
    'latency-ns': { type: 'number', help: 'time that every request takes, in ns' },
  },
  open: (context: OpenContext, options: NullOptions) => new NullNode(context.aio, options),
};

/** Here it is the same: nothing of either is done inside the call that begins a request. */
export const nullAioDriver: Driver<NullOptions> = { ...nullDriver, name: 'null-aio' };
