/**
 * Moves at every moment: two homes, an NBD service and its client in one simulated world. What is done at the k-th
 * event of a run is done at every k; each request is answered once, with what the model says, and nothing is left
 * behind.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AioSocket } from '../aio/backend.ts';
import { AioContext } from '../aio/context.ts';
import { WaitOp } from '../aio/op.ts';
import { Sim } from '../aio/sim/sim.ts';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import { Prng } from '../base/prng.ts';
import { requestBytes } from '../exports/nbd/raw-client.ts';
import { Command, GREETING_SIZE, OPTION_REPLY_HEADER_SIZE, Option, OptionReply } from '../proto/nbd/constants.ts';
import { decodeOptionReplyHeader, encodeClientFlags, encodeInfoRequest, encodeOption } from '../proto/nbd/option.ts';
import type { Method, MethodArgs, MethodResult } from './messages.ts';
import { type MoveThread, move as moveBetween } from './move.ts';
import { NO_REFERENCES } from './reference-policy.ts';
import { setup } from './worker.ts';

const KiB = 1024;
const DISK_BYTES = 256 * KiB;
const BLOCK = 4 * KiB;
const ADDRESS = { kind: 'unix', path: '/nbd' } as const;

/** A thread of the simulated world. */
class Home implements MoveThread {
  readonly name: string;
  readonly context: AioContext;
  readonly #furnished: ReturnType<typeof setup>;
  #stopping: Promise<void> | undefined;

  constructor(sim: Sim, name: string) {
    this.name = name;
    this.context = new AioContext(sim.backend(name), { name });
    this.#furnished = setup({ name, threadId: 0, context: this.context, emit: () => undefined });
  }

  call = async <M extends Method>(method: M, args: MethodArgs<M>): Promise<MethodResult<M>> => {
    if (this.#stopping) throw new BlockError(Errno.ESHUTDOWN, `'${this.name}' is stopping`);
    const handler = this.#furnished.handlers[method] as unknown as (args: MethodArgs<M>) => Promise<MethodResult<M>>;
    return await handler(args);
  };

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

/** An NBD client that keeps four writes, or four reads, in flight. */
class Client {
  readonly #socket: AioSocket;
  readonly #memory: Memory;
  readonly #model = new Uint8Array(DISK_BYTES);
  readonly #prng = new Prng(7);
  /** Requests that were answered well, and those that failed. */
  answers = 0;
  errors = 0;
  /** True once the server has ended the connection. */
  gone = false;

  constructor(context: AioContext, socket: AioSocket) {
    this.#socket = socket;
    this.#memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(64 * KiB)));
  }

  async run(rounds: number): Promise<void> {
    try {
      await this.#handshake();
      for (let i = 0; i < rounds && !this.gone; i++) await this.#round();
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
    await this.#write(encodeClientFlags(3), encodeOption(Option.GO, encodeInfoRequest('', [])));
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
    const places = Array.from({ length: 4 }, (_, i) => (i * 16 + this.#prng.below(15)) * BLOCK);
    const requests: Uint8Array[] = [];
    for (const [i, at] of places.entries()) {
      const bytes = this.#prng.fill(new Uint8Array(BLOCK));
      this.#model.set(bytes, at);
      requests.push(requestBytes(Command.WRITE, at, BLOCK, i), bytes);
    }
    await this.#write(...requests);
    await this.#answers(places, false);
    await this.#write(requestBytes(Command.FLUSH, 0, 0, 0));
    await this.#answers([0], false);
    await this.#write(...places.map((at, i) => requestBytes(Command.READ, at, BLOCK, i)));
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

  /** In two pieces, so that a move may come in the middle of a payload. */
  async #write(...parts: readonly Uint8Array[]): Promise<void> {
    const bytes = Buffer.concat(parts);
    this.#memory.bytes.set(bytes, 32 * KiB);
    const middle = Math.floor(bytes.length / 3);
    for (const [from, to] of [
      [0, middle],
      [middle, bytes.length],
    ] as const) {
      if (this.gone) return;
      const op = new WaitOp();
      const ended = op.wait();
      this.#socket.send(op, Iov.of(this.#memory, 32 * KiB + from, to - from));
      if ((await ended) < 0) this.gone = true;
    }
  }
}

interface Stage {
  readonly a: Home;
  readonly b: Home;
  readonly disk: number;
  readonly service: number;
  readonly client: Client;
}

interface Outcome {
  readonly answers: number;
  readonly errors: number;
  readonly gone: boolean;
  readonly events: number;
}

/** Runs the client's three rounds; at event `moment` of them `act` begins, at event `early` what comes before. */
async function play(moment: number, act: Act, early = -1, before: Act = async () => undefined): Promise<Outcome> {
  const sim = new Sim(11);
  // What crosses between the homes goes through message ports, which this thread's own loop delivers.
  let rounds = 0;
  sim.outside = () => ++rounds % 3 !== 0;
  const [a, b, c] = [new Home(sim, 'a'), new Home(sim, 'b'), new AioContext(sim.backend('c'), { name: 'c' })];
  const { disk, service } = await sim.complete(serve(sim, a));
  const client = new Client(c, await sim.complete(c.backend.connect(ADDRESS)));
  const stage = { a, b, disk, service, client };
  let events = 0;
  let over = false;
  const acts: Promise<unknown>[] = [];
  const played = client.run(3).finally(() => {
    over = true;
  });
  await sim.run(() => {
    if (events === early) acts.push(before(stage));
    if (events++ === moment) acts.push(act(stage));
    return over;
  });
  await sim.complete(Promise.all([played, ...acts]));
  await sim.complete(Promise.all([a.stop(), b.stop(), c.stop()]));
  return { answers: client.answers, errors: client.errors, gone: client.gone, events };
}

/** Opens the disk in `home` and serves it there. */
async function serve(sim: Sim, home: Home): Promise<{ readonly disk: number; readonly service: number }> {
  sim.writeDisk('/disk', new Uint8Array(DISK_BYTES));
  const file = { driver: 'file', filename: '/disk', locking: 'off' } as const;
  const how = { name: 'disk', writethrough: false, probed: false, policy: NO_REFERENCES };
  const { disk } = await home.call('open', { options: { driver: 'raw', file }, ...how });
  const exports = [
    { disk, name: '', description: '', writable: true, bitmaps: [], allocationDepth: true, multiConn: true },
  ];
  const none = { handshakeSeconds: undefined, byteBudget: undefined, tls: undefined };
  const limits = { mode: undefined, maxConnections: undefined, ...none };
  const { service } = await home.call('nbd-start', { listen: [ADDRESS], exports, ...limits });
  return { disk, service };
}

type Act = (stage: Stage) => Promise<unknown>;

/** Once for every `step`-th event of a run; `early` and `before`: see {@link play}. */
async function atEveryMoment(
  act: Act,
  check: (outcome: Outcome) => void,
  step: number,
  early = -1,
  before?: Act,
): Promise<void> {
  const { events } = await play(-1, act, early, before);
  for (let moment = 0; moment < events; moment += step) {
    try {
      check(await play(moment, act, early, before));
    } catch (error) {
      throw new Error(`at event ${moment}: ${(error as Error).message}`, { cause: error });
    }
  }
}

const ANSWERS = 3 * 9;
/** Of the events, where all of them would take long. */
const STEP = process.env.BLOCKPLANE_TEST_TIER === 'long' ? 1 : 3;

function allAnswered({ answers, errors, gone }: Outcome): void {
  assert.deepEqual({ answers, errors, gone }, { answers: ANSWERS, errors: 0, gone: false });
}

/** The client was served, or told, or left: whichever, it has ended. */
function ended({ answers, errors, gone }: Outcome): void {
  assert.ok(gone || answers + errors === ANSWERS, `${answers} answers, ${errors} errors`);
}

const move = ({ a, b, disk }: Stage): Promise<unknown> => moveBetween({ disk }, a, b);

/** A move that may come too late. */
async function tryMove(stage: Stage): Promise<void> {
  try {
    await move(stage);
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
  }
}

test('B8 a move at any moment: each request is answered once and right', { timeout: 60_000 }, async () => {
  await atEveryMoment(move, allAnswered, 1);
});

test('B8 there and back at any moment', { timeout: 60_000 }, async () => {
  const act = async ({ a, b, disk }: Stage): Promise<void> => {
    await moveBetween({ disk }, a, b);
    await moveBetween({ disk }, b, a);
    await moveBetween({ disk }, a, b);
  };
  await atEveryMoment(act, allAnswered, STEP);
});

const ENDS: readonly (readonly [string, Act])[] = [
  ['its client leaves', async ({ client }) => client.cut()],
  ['its export is removed', ({ a, service }) => a.call('nbd-remove', { service, name: '', mode: 'hard' })],
  ['its service stops', ({ a, service }) => a.call('nbd-stop', { service, graceMs: 1 })],
  ['the thread it leaves stops', ({ a }) => a.stop()],
  ['the thread it goes to stops', ({ b }) => b.stop()],
];

for (const [what, end] of ENDS) {
  test(`B8 ${what} at any moment before, in and after a move`, { timeout: 60_000 }, async () => {
    await atEveryMoment(end, ended, STEP, 60, tryMove);
  });
}
