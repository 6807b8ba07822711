/**
 * Moves at every moment: two homes, an NBD service and its client in one simulated world. What is done at the k-th
 * event of a run is done at every k; each request is answered once, with what the model says, and nothing is left
 * behind.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { BlockError } from '../base/errors.ts';
import { move as moveBetween } from './move.ts';
import { ADDRESS, Client, Home, openDisk } from './testing-homes.ts';

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
  const { disk } = await openDisk(sim, home);
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
