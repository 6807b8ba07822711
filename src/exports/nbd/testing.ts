/** For tests of the NBD server: a socket in memory, exports without a disk, and what a client reads and says. */
import type { AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import type { AioOp } from '../../aio/op.ts';
import { Errno } from '../../base/errors.ts';
import type { Iov, Memory } from '../../base/memory.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { GREETING_SIZE, OPTION_REPLY_HEADER_SIZE } from '../../proto/nbd/constants.ts';
import { decodeOptionReplyHeader, type OptionReplyHeader } from '../../proto/nbd/option.ts';
import type { NbdExport } from './export-list.ts';

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** A server's socket whose client is the test. Operations end in a microtask of their own. */
export class MemorySocket implements AioSocket {
  readonly peer = 'memory';
  /** Everything the server has sent. */
  output = new Uint8Array(0);
  shut = false;
  /** The longest piece that one recv gives. */
  readonly #piece: number;
  /** After how many sent bytes the client stops reading. */
  readonly #reads: number;
  #input = new Uint8Array(0);
  #ended = false;
  #receiver: (() => boolean) | undefined;
  #sender: AioOp | undefined;

  constructor(piece = Number.POSITIVE_INFINITY, reads = Number.POSITIVE_INFINITY) {
    this.#piece = piece;
    this.#reads = reads;
  }

  feed(bytes: Uint8Array): void {
    this.#input = concat(this.#input, bytes) as Uint8Array<ArrayBuffer>;
    this.#pump();
  }

  end(): void {
    this.#ended = true;
    this.#pump();
  }

  /** True while the server waits for this socket. */
  get busy(): boolean {
    return this.#receiver !== undefined || this.#sender !== undefined;
  }

  recv(op: AioOp, memory: Memory, at: number, length: number): void {
    if (this.#receiver) throw new Error('two receives at a time');
    this.#receiver = () => {
      const count = this.shut ? 0 : Math.min(length, this.#input.length, this.#piece);
      if (count === 0 && !this.#ended && !this.shut) return false;
      memory.bytes.set(this.#input.subarray(0, count), at);
      this.#input = this.#input.slice(count);
      this.#receiver = undefined;
      op.complete(count);
      return true;
    };
    this.#pump();
  }

  send(op: AioOp, iov: Iov): void {
    if (this.#sender) throw new Error('two sends at a time');
    for (let i = 0; i < iov.count; i++) this.output = concat(this.output, iov.run(i)) as Uint8Array<ArrayBuffer>;
    const { length } = iov;
    this.#sender = op;
    if (this.output.length > this.#reads && !this.shut) return;
    this.#endSend(this.shut ? -Errno.EPIPE : length);
  }

  sendAfter(): boolean {
    return false;
  }

  shutdown(): void {
    this.shut = true;
    this.#pump();
    if (this.#sender) this.#endSend(-Errno.EPIPE);
  }

  async close(): Promise<void> {
    if (this.busy) throw new Error('closed while in use');
  }

  #pump(): void {
    queueMicrotask(() => this.#receiver?.());
  }

  #endSend(result: number): void {
    queueMicrotask(() => {
      const op = this.#sender;
      this.#sender = undefined;
      op?.complete(result);
    });
  }
}

/** Memory as a backend without a native layer gives it. */
export function plainMemory(size: number): Memory {
  const bytes = new Uint8Array(new SharedArrayBuffer(size));
  return { bytes, view: new DataView(bytes.buffer), address: 0 };
}

/** A context with nothing but timers, which run when the test says so. */
export class ManualTimers {
  readonly armed = new Set<() => void>();
  readonly context = {
    timer: (callback: () => void) => ({
      armIn: () => void this.armed.add(callback),
      cancel: () => void this.armed.delete(callback),
    }),
  } as unknown as AioContext;

  fire(): void {
    for (const callback of [...this.armed]) {
      this.armed.delete(callback);
      callback();
    }
  }
}

export interface FakeExportOptions extends Partial<Omit<NbdExport, 'blk'>> {
  readonly size?: number;
  readonly alignment?: number;
  readonly optimal?: number;
}

/** An export of which only the handshake asks anything. */
export function fakeExport(options: FakeExportOptions = {}): NbdExport {
  const { size = 1 << 20, alignment = 1, optimal = 4096, ...rest } = options;
  const blk = { length: size, limits: { alignment, optimal }, users: new Set(), quiesce: 0 } as unknown as BlockBackend;
  return { name: '', description: '', writable: true, allocationDepth: false, multiConn: true, ...rest, blk };
}

export interface ParsedReply extends OptionReplyHeader {
  readonly payload: Uint8Array;
}

/** The option replies after the greeting; what does not parse is `rest`. */
export function parseReplies(output: Uint8Array): { replies: ParsedReply[]; rest: Uint8Array } {
  const replies: ParsedReply[] = [];
  let at = GREETING_SIZE;
  const view = new DataView(output.buffer, output.byteOffset, output.length);
  while (output.length - at >= OPTION_REPLY_HEADER_SIZE) {
    const header = decodeOptionReplyHeader(view, at);
    if (!header || header.length > output.length - at - OPTION_REPLY_HEADER_SIZE) break;
    const start = at + OPTION_REPLY_HEADER_SIZE;
    replies.push({ ...header, payload: output.slice(start, start + header.length) });
    at = start + header.length;
  }
  return { replies, rest: output.slice(at) };
}

/** Waits until `condition` holds; throws after 10 s. */
export async function until(condition: () => boolean): Promise<void> {
  for (const end = performance.now() + 10_000; !condition(); ) {
    if (performance.now() > end) throw new Error(`never came true: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
