/**
 * NBD clients that follow their disk from thread to thread, as the daemon has it: three homes in one simulated world,
 * the servers of one service in them, and the program's thread between them, with messages that take their time. What
 * is done at the k-th event of a run is done at every k; each request is answered once, with what the model says.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { Sim } from '../aio/sim/sim.ts';
import { BlockError } from '../base/errors.ts';
import type { Disk } from './disk.ts';
import { DiskHome } from './disk-home.ts';
import type { IOThread } from './iothread.ts';
import { move } from './move.ts';
import { NbdMembers, type Shown } from './nbd-members.ts';
import { ADDRESS, Client, type ClientOptions, DISK_BYTES, Home, openDisk } from './testing-homes.ts';

/** Of a message between threads. */
const MESSAGE_NS = 10_000;
const ROUNDS = 3;
/** Of the events, where all of them would take long. */
const STEP = process.env.BLOCKPLANE_TEST_TIER === 'long' ? 1 : 37;

/** A service whose greeter is in `main`, its disk, which begins in `a`, and its clients. */
class Stage {
  readonly main: Home;
  readonly a: Home;
  readonly b: Home;
  readonly members: NbdMembers;
  readonly disk: Disk;
  readonly clients: readonly Client[];
  /** Commands come one after the other. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(homes: readonly Home[], members: NbdMembers, disk: Disk, clients: readonly Client[]) {
    [this.main, this.a, this.b] = homes as [Home, Home, Home];
    this.members = members;
    this.disk = disk;
    this.clients = clients;
  }

  command<T>(body: () => Promise<T>): Promise<T> {
    const done = this.#last.then(body);
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** As the daemon moves its nodes. */
  move(to: Home): Promise<void> {
    return this.command(async () => {
      const { disk, members } = this;
      const thread = to as unknown as IOThread;
      const from = disk.iothread;
      if (from === thread) return;
      try {
        await members.prepare(disk, thread);
        using _rest = await disk.home.rest();
        await move({ disk: disk.id }, from, to, (moved) => disk.home.moved(thread, moved.get(disk.id)!));
      } finally {
        await members.settle(disk);
      }
    });
  }
}

type Act = (stage: Stage) => Promise<unknown>;

interface Outcome {
  readonly events: number;
  readonly clients: readonly Client[];
}

interface Plan {
  readonly act: Act;
  readonly clients: readonly ClientOptions[];
  /** Something that begins before, at that event. */
  readonly early?: { readonly at: number; readonly act: Act };
  /** What each client waits for before its last round. */
  readonly idle?: Act;
}

async function play({ act, clients: options, early, idle }: Plan, moment: number): Promise<Outcome> {
  const sim = new Sim(11);
  // What crosses between the homes goes through message ports, which this thread's own loop delivers.
  let rounds = 0;
  sim.outside = () => ++rounds % 3 !== 0;
  const homes = ['main', 'a', 'b'].map((name) => new Home(sim, name, MESSAGE_NS));
  const context = new AioContext(sim.backend('client'), { name: 'client' });
  const members = new NbdMembers({ onClient: () => undefined, onCrash: () => undefined }, true);
  const disk = await sim.complete(serve(sim, homes, members));
  const clients: Client[] = [];
  const stage = new Stage(homes, members, disk, clients);
  for (const [i, one] of options.entries()) {
    const socket = await sim.complete(context.backend.connect(ADDRESS));
    const waits = idle ? { idle: () => idle(stage) } : {};
    clients.push(new Client(context, socket, { ...one, ...waits, from: i * DISK_BYTES }));
  }
  let events = 0;
  let over = false;
  const acts: Promise<unknown>[] = [];
  const played = Promise.all(clients.map((client) => client.run(ROUNDS))).finally(() => {
    over = true;
  });
  await sim.run(() => {
    if (events === early?.at) acts.push(early.act(stage));
    if (events++ === moment) acts.push(act(stage));
    return over;
  });
  await sim.complete(Promise.all([played, ...acts]));
  await sim.complete(stage.command(() => members.stop(0)));
  await sim.complete(Promise.all([...homes.map((home) => home.stop()), context.stop()]));
  return { events, clients };
}

/** Opens the disk in the second home, and serves it from the first. */
async function serve(sim: Sim, [main, a]: readonly Home[], members: NbdMembers): Promise<Disk> {
  const reply = await openDisk(sim, a!, 3 * DISK_BYTES);
  const thread = a as unknown as IOThread;
  const home = new DiskHome(reply.disk, { thread, release: async () => undefined }, reply.nodeName);
  const disk = {
    id: reply.disk,
    home,
    get iothread(): IOThread {
      return home.thread;
    },
    shownIn: (where: IOThread, body: () => Promise<unknown>) => home.shownIn(where, 'disk', body),
  } as unknown as Disk;
  const limits = { mode: undefined, maxConnections: undefined, handshakeSeconds: undefined, byteBudget: undefined };
  await members.start([main as unknown as IOThread], [], { listen: [ADDRESS], ...limits, tls: undefined });
  await members.add(shown(disk));
  return disk;
}

function shown(disk: Disk): Shown {
  const how = { description: '', writable: true, bitmaps: [], allocationDepth: true, multiConn: true };
  return { disk, message: { disk: disk.id, name: '', ...how } };
}

/** Once for every `step`-th event of a run. */
async function atEveryMoment(plan: Plan, check: (outcome: Outcome) => void, step: number): Promise<void> {
  const { events } = await play(plan, -1);
  for (let moment = 0; moment < events; moment += step) {
    try {
      check(await play(plan, moment));
    } catch (error) {
      throw new Error(`at event ${moment}: ${(error as Error).message}`, { cause: error });
    }
  }
}

function allAnswered({ clients }: Outcome): void {
  for (const { answers, errors, gone, each } of clients) {
    assert.deepEqual({ answers, errors, gone }, { answers: ROUNDS * each, errors: 0, gone: false });
  }
}

/** Each was served, or told, or left: whichever, it has ended. */
function ended({ clients }: Outcome): void {
  for (const { answers, errors, gone, each } of clients) {
    assert.ok(gone || answers + errors === ROUNDS * each, `${answers} answers, ${errors} errors`);
  }
}

/** A move, or another command, that may come too late. */
function attempt(act: Act): Act {
  return async (stage) => {
    try {
      await act(stage);
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
    }
  };
}

/** Four requests in flight, cut in a payload; sixteen; and four, cut in the header of the first. */
const CLIENTS: readonly ClientOptions[] = [{}, { depth: 16 }, { cut: () => 11 }];
const LIMIT = { timeout: 120_000 };

const ROUTES: Readonly<Record<string, Act>> = {
  'to another thread': (stage) => stage.move(stage.b),
  'to the greeter': (stage) => stage.move(stage.main),
  'from the greeter': async (stage) => {
    await stage.move(stage.main);
    await stage.move(stage.b);
  },
  'there and back, and on, at once': (stage) =>
    Promise.all([stage.b, stage.a, stage.main, stage.b, stage.main].map((to) => stage.move(to))),
};

for (const [where, act] of Object.entries(ROUTES)) {
  test(`B8 clients follow ${where} at any moment: each request is answered once and right`, LIMIT, async () => {
    await atEveryMoment({ act, clients: CLIENTS }, allAnswered, STEP);
  });
}

test('B8 an idle client is served in the new home, and nothing of it stays in the old one', LIMIT, async () => {
  let seen: readonly number[] = [];
  // Before its last round it does nothing until the disk has moved.
  const idle = async (stage: Stage): Promise<void> => {
    await stage.move(stage.b);
    seen = await Promise.all([stage.a, stage.b].map(async (home) => (await home.call('stats', undefined)).services));
  };
  allAnswered(await play({ act: async () => undefined, clients: [{}], idle }, -1));
  // A service ends where no client is left.
  assert.deepEqual(seen, [0, 1]);
});

const ENDS: Readonly<Record<string, Act>> = {
  'a client leaves': async ({ clients }) => clients[1]!.cut(),
  'the export is removed': (stage) => stage.command(() => stage.members.remove('', 'hard')),
  'the service stops': ({ members }) => members.stop(1),
  'the thread it leaves stops': ({ a }) => a.stop(),
  'the thread it goes to stops': ({ b }) => b.stop(),
};

for (const [what, act] of Object.entries(ENDS)) {
  test(`B8 ${what} at any moment before, in and after a move with its clients`, LIMIT, async () => {
    const early = { at: 80, act: attempt((stage) => stage.move(stage.b)) };
    await atEveryMoment({ act: attempt(act), clients: CLIENTS, early }, ended, STEP);
  });
}
