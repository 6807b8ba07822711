/** For tests of moves: IOThreads of a simulated world, and an NBD client of theirs. */
import assert from 'node:assert/strict';
import type { AioSocket } from '../aio/backend.ts';
import { AioContext } from '../aio/context.ts';
import { Gate, WaitOp } from '../aio/op.ts';
import type { Sim } from '../aio/sim/sim.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';
import { requestBytes } from '../exports/nbd/raw-client.ts';
import { Command, GREETING_SIZE, OPTION_REPLY_HEADER_SIZE, Option, OptionReply } from '../proto/nbd/constants.ts';
import { decodeOptionReplyHeader, encodeClientFlags, encodeInfoRequest, encodeOption } from '../proto/nbd/option.ts';
import type { Method, MethodArgs, MethodResult } from './messages.ts';
import type { MoveThread } from './move.ts';
import { NO_REFERENCES } from './reference-policy.ts';
import { setup } from './worker.ts';

const KiB = 1024;
const BLOCK = 4 * KiB;
/** What every client's requests lie in, from the beginning of its part on. */
export const DISK_BYTES = 256 * KiB;
export const ADDRESS = { kind: 'unix', path: '/nbd' } as const;

type Listener = (name: string, payload: unknown) => void;

/** A thread of the simulated world, as the program's thread sees it. */
export class Home implements MoveThread {
  readonly name: string;
  readonly context: AioContext;
  readonly #sim: Sim;
  /** How long a message is on its way; 0: it is there at once. */
  readonly #delayNs: Nanoseconds;
  readonly #furnished: ReturnType<typeof setup>;
  readonly #listeners = new Map<number, Listener>();
  #stopping: Promise<void> | undefined;

  constructor(sim: Sim, name: string, delayNs: Nanoseconds = 0) {
    this.name = name;
    this.#sim = sim;
    this.#delayNs = delayNs;
    this.context = new AioContext(sim.backend(name), { name });
    const emit: Listener = (event, payload) => void this.#emit(event, payload);
    this.#furnished = setup({ name, threadId: 0, context: this.context, emit });
  }

  call = async <M extends Method>(method: M, args: MethodArgs<M>): Promise<MethodResult<M>> => {
    await this.#travel();
    if (this.#stopping) throw new BlockError(Errno.ESHUTDOWN, `'${this.name}' is stopping`);
    const handler = this.#furnished.handlers[method] as unknown as (args: MethodArgs<M>) => Promise<MethodResult<M>>;
    try {
      return await handler(args);
    } finally {
      await this.#travel();
    }
  };

  async #emit(event: string, payload: unknown): Promise<void> {
    await this.#travel();
    this.#listeners.get((payload as { readonly service: number }).service)?.(event, payload);
  }

  /** Messages arrive in their order. */
  async #travel(): Promise<void> {
    if (this.#delayNs === 0) return;
    const there = new Gate();
    this.#sim.after(this.#delayNs, () => there.open());
    await there.promise;
  }

  /** See IOThread.listen. */
  listen(service: number, listener: Listener | undefined): void {
    if (listener) this.#listeners.set(service, listener);
    else this.#listeners.delete(service);
  }

  // It does not crash, and nothing is kept alive by it.
  on(): void {}
  off(): void {}
  hold(): void {}
  unhold(): void {}

  /** Again: the same end. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    await this.#furnished.stop?.();
    await this.context.stop();
  }
}

/** Opens an empty disk of `bytes` in `home`. */
export async function openDisk(sim: Sim, home: Home, bytes: Bytes = DISK_BYTES) {
  sim.writeDisk('/disk', new Uint8Array(bytes));
  const file = { driver: 'file', filename: '/disk', locking: 'off' } as const;
  const how = { name: 'disk', writethrough: false, probed: false, policy: NO_REFERENCES };
  return home.call('open', { options: { driver: 'raw', file }, ...how });
}

export interface ClientOptions {
  /** Requests in flight; a divisor of 64. */
  readonly depth?: number;
  /** How many of `length` bytes are sent first, and the others when those have gone. */
  readonly cut?: (length: Bytes) => Bytes;
  /** Where its part of the disk begins. */
  readonly from?: Bytes;
  readonly exportName?: string;
  /** What the last round waits for: until then it does nothing. */
  readonly idle?: () => Promise<unknown>;
}

/** An NBD client that keeps some writes, or some reads, in flight. */
export class Client {
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #model = new Uint8Array(DISK_BYTES);
  readonly #prng = new Prng(7);
  readonly #depth: number;
  readonly #cut: (length: Bytes) => Bytes;
  readonly #from: Bytes;
  readonly #name: string;
  readonly #idle: () => Promise<unknown>;
  /** Requests that were answered well, and those that failed. */
  answers = 0;
  errors = 0;
  /** True once the server has ended the connection. */
  gone = false;

  constructor(context: AioContext, socket: AioSocket, options: ClientOptions = {}) {
    this.#socket = socket;
    this.#depth = options.depth ?? 4;
    // In the middle of a payload.
    this.#cut = options.cut ?? ((length) => Math.floor(length / 3));
    this.#from = options.from ?? 0;
    this.#name = options.exportName ?? '';
    this.#idle = options.idle ?? (async () => undefined);
    this.#memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(160 * KiB)));
  }

  /** Requests of a round. */
  get each(): number {
    return 2 * this.#depth + 1;
  }

  async run(rounds: number): Promise<void> {
    try {
      await this.#handshake();
      for (let i = 0; i < rounds && !this.gone; i++) {
        if (i === rounds - 1) await this.#idle();
        await this.#round();
      }
    } finally {
      this.#socket.shutdown();
      await this.#socket.close();
    }
  }

  cut(): void {
    this.#socket.shutdown();
  }

  async #handshake(): Promise<void> {
    await this.#read(GREETING_SIZE);
    await this.#write(encodeClientFlags(3), encodeOption(Option.GO, encodeInfoRequest(this.#name, [])));
    for (;;) {
      const head = await this.#read(OPTION_REPLY_HEADER_SIZE);
      if (this.gone) return;
      const reply = decodeOptionReplyHeader(new DataView(head.buffer, head.byteOffset), 0)!;
      if (reply.length > 0) await this.#read(reply.length);
      if (reply.type === OptionReply.ACK) return;
      // Its export has just been removed.
      if (reply.type === OptionReply.ERR_UNKNOWN) this.gone = true;
      else assert.equal(reply.type, OptionReply.INFO);
    }
  }

  async #round(): Promise<void> {
    const stride = 64 / this.#depth;
    const places = Array.from(
      { length: this.#depth },
      (_, i) => (i * stride + this.#prng.below(Math.max(1, stride - 1))) * BLOCK,
    );
    const requests: Uint8Array[] = [];
    for (const [i, at] of places.entries()) {
      const bytes = this.#prng.fill(new Uint8Array(BLOCK));
      this.#model.set(bytes, at);
      requests.push(requestBytes(Command.WRITE, this.#from + at, BLOCK, i), bytes);
    }
    await this.#write(...requests);
    await this.#answers(places, false);
    await this.#write(requestBytes(Command.FLUSH, 0, 0, 0));
    await this.#answers([0], false);
    await this.#write(...places.map((at, i) => requestBytes(Command.READ, this.#from + at, BLOCK, i)));
    await this.#answers(places, true);
  }

  /** One answer to each of the requests, in any order. */
  async #answers(places: readonly number[], withData: boolean): Promise<void> {
    const open = new Set(places.keys());
    while (open.size > 0) {
      const head = Buffer.from(await this.#read(16));
      if (this.gone) return;
      const cookie = head.readUInt32BE(12);
      assert.ok(open.delete(cookie), `an answer to request ${cookie}, which is not in flight`);
      const error = head.readUInt32BE(4);
      if (error !== 0) {
        this.errors++;
        continue;
      }
      this.answers++;
      if (!withData) continue;
      const at = places[cookie]!;
      const bytes = await this.#read(BLOCK);
      if (!this.gone) assert.deepEqual(bytes, this.#model.slice(at, at + BLOCK), `other bytes at ${at}`);
    }
  }

  async #read(length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let have = 0; have < length && !this.gone; ) {
      const op = new WaitOp();
      const ended = op.wait();
      this.#socket.recv(op, this.#memory, 0, Math.min(length - have, 32 * KiB), false);
      const got = await ended;
      if (got <= 0) this.gone = true;
      else bytes.set(this.#memory.bytes.subarray(0, got), have);
      have += Math.max(got, 0);
    }
    return bytes;
  }

  /** In two pieces, so that a move may come in the middle of a request. */
  async #write(...parts: readonly Uint8Array[]): Promise<void> {
    const bytes = Buffer.concat(parts);
    this.#memory.bytes.set(bytes, 32 * KiB);
    const middle = Math.min(this.#cut(bytes.length), bytes.length);
    for (const [from, to] of [
      [0, middle],
      [middle, bytes.length],
    ] as const) {
      if (this.gone) return;
      if (from === to) continue;
      const op = new WaitOp();
      const ended = op.wait();
      this.#socket.send(op, Iov.of(this.#memory, 32 * KiB + from, to - from));
      if ((await ended) < 0) this.gone = true;
    }
  }
}
