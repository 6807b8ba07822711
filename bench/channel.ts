/**
 * The device API from another thread: one or several client threads read from null disks in IOThreads, through
 * channels. Round trips at queue depth 1 with and without the IOThread polling, throughput at 32, and whether a main
 * thread that is blocked or busy slows the data path.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { globalMutex } from '../src/aio/global-mutex.ts';
import { type Disk, IOThread, open } from '../src/index.ts';
import type { ClientReport, ClientTask, Manner } from './channel-client.ts';
import { figure, machineLine, markdownTable, median, options } from './common.ts';

const CLIENT = new URL('./channel-client.js', import.meta.url);
const DISK_BYTES = 2 ** 30;
/** Of the house's goals. */
const GOALS = { pollingUs: 12, sleepingUs: 35, perSecond: 500_000, slowerPercent: 5 };

interface Home {
  readonly thread: IOThread;
  readonly disk: Disk;
}

async function startHome(pollMaxNs: number): Promise<Home> {
  const thread = await IOThread.start({ pollMaxNs });
  const disk = await open({ driver: 'null-co', size: DISK_BYTES }, { iothread: thread });
  return { thread, disk };
}

async function stopHome({ thread, disk }: Home): Promise<void> {
  await disk.close();
  await thread.stop();
}

type Beside = 'main free' | 'main blocked' | 'worker busy' | 'main busy';

/** Spins or sleeps until `count` clients have ended. */
function wait(words: Int32Array<SharedArrayBuffer>, count: number, spin: boolean): void {
  for (let ended = Atomics.load(words, 2); ended < count; ended = Atomics.load(words, 2)) {
    if (!spin) Atomics.wait(words, 2, ended);
  }
}

/** A worker that spins until then; resolves once it does. */
async function busyWorker(words: Int32Array<SharedArrayBuffer>, count: number): Promise<void> {
  const source = `const { parentPort, workerData: [words, count] } = require('node:worker_threads');
    parentPort.postMessage(1);
    while (Atomics.load(words, 2) < count);`;
  await once(new Worker(source, { eval: true, workerData: [words, count] }), 'message');
}

/** Runs clients at once, one on each of `disks`, while this thread is as `beside` says. */
async function clients(
  disks: readonly Disk[],
  [manner, depth, requests]: readonly [Manner, number, number],
  beside: Beside = 'main free',
): Promise<ClientReport[]> {
  const words = new Int32Array(new SharedArrayBuffer(12));
  const reports: Promise<ClientReport>[] = [];
  for (const disk of disks) {
    const descriptor = await disk.handle();
    const task: ClientTask = { descriptor, manner, depth, requests, words };
    const worker = new Worker(CLIENT, { workerData: task, transferList: [descriptor.port] });
    reports.push(once(worker, 'message').then(([report]) => report as ClientReport));
  }
  const all = Promise.all(reports);
  while (Atomics.load(words, 0) < disks.length) await new Promise((resolve) => setTimeout(resolve, 5));
  if (beside === 'worker busy') await busyWorker(words, disks.length);
  Atomics.store(words, 1, 1);
  Atomics.notify(words, 1);
  if (beside === 'main busy' || beside === 'main blocked') wait(words, disks.length, beside === 'main busy');
  return await all;
}

const HEAD = [
  'client',
  'IOThread',
  'depth',
  'p50 µs',
  'p99 µs',
  'requests/s',
  'woke home',
  'saved',
  'woke client',
  'saved',
];

interface Contest {
  readonly manner: Manner;
  readonly pollMaxNs: number;
  readonly depth: number;
}

function row({ manner, pollMaxNs, depth }: Contest, runs: readonly ClientReport[]): string[] {
  const middle = (of: (report: ClientReport) => number): string => figure(median(runs.map(of)));
  return [
    manner,
    pollMaxNs === 0 ? 'sleeps' : `polls ${pollMaxNs / 1000} µs`,
    String(depth),
    middle((r) => r.p50),
    middle((r) => r.p99),
    middle((r) => r.good / r.seconds),
    middle((r) => r.homeWakes),
    middle((r) => r.homeWakesSaved),
    middle((r) => r.clientWakes),
    middle((r) => r.clientWakesSaved),
  ];
}

function bar(what: string, value: number, held: boolean): boolean {
  console.log(`bar: ${what}: ${figure(value)}: ${held ? 'held' : 'missed'}`);
  return held;
}

/**
 * Three clients on two IOThreads, while the main thread is free, blocked, and busy. A processor that is taken costs the
 * same whoever takes it: so a busy main thread is compared with a busy worker.
 */
async function besideMain(rounds: number, requests: number): Promise<boolean> {
  const homes = [await startHome(0), await startHome(0)];
  const disks = [homes[0]!.disk, homes[1]!.disk, homes[0]!.disk];
  const rates: Record<Beside, number[]> = { 'main free': [], 'main blocked': [], 'worker busy': [], 'main busy': [] };
  const before = globalMutex().stats.acquisitions;
  for (let round = 0; round < rounds; round++) {
    for (const beside of Object.keys(rates) as Beside[]) {
      const reports = await clients(disks, ['loop', 32, requests], beside);
      const good = reports.reduce((sum, report) => sum + report.good, 0);
      if (good !== 3 * requests) throw new Error(`${good} requests ended well of ${3 * requests}`);
      rates[beside].push(good / Math.max(...reports.map((report) => report.seconds)));
    }
  }
  const taken = globalMutex().stats.acquisitions - before;
  for (const home of homes) await stopHome(home);
  const rows = Object.entries(rates).map(([beside, list]) => [beside, figure(median(list))]);
  console.log(`\n${markdownTable([`3 clients x ${requests}, 2 IOThreads`, 'requests/s'], rows)}\n`);
  const slower = (beside: Beside, than: Beside): number =>
    median(rates[beside].map((rate, round) => 100 * (1 - rate / rates[than][round]!)));
  const [blocked, busy] = [slower('main blocked', 'main free'), slower('main busy', 'worker busy')];
  return [
    bar(`acquisitions of the global mutex in ${12 * requests * rounds} requests: 0`, taken, taken === 0),
    bar(
      'with a blocked main thread at most 5 % slower than with a free one, in %',
      blocked,
      blocked <= GOALS.slowerPercent,
    ),
    bar('with a busy main thread at most 5 % slower than with a busy worker, in %', busy, busy <= GOALS.slowerPercent),
  ].every((held) => held);
}

async function main(): Promise<number> {
  const given = options('Requests from other threads, through channels', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    requests: { type: 'string', default: '20000', help: 'requests of a round at depth 1; ten times as many at 32' },
    busy: { type: 'string', default: '334000', help: 'requests of each of three clients beside a busy main thread' },
    smoke: { type: 'boolean', help: 'one short round: does it still work' },
  });
  const small = given.get('smoke') === true;
  const rounds = small ? 1 : Number(given.get('rounds'));
  const requests = small ? 1000 : Number(given.get('requests'));
  console.log(machineLine([]));
  const contests: Contest[] = [];
  for (const pollMaxNs of [65_536, 0]) {
    for (const manner of ['loop', 'node', 'spin', 'sync'] as const) contests.push({ manner, pollMaxNs, depth: 1 });
    for (const manner of ['loop', 'node'] as const) contests.push({ manner, pollMaxNs, depth: 32 });
  }
  const runs = new Map<Contest, ClientReport[]>(contests.map((contest) => [contest, []]));
  for (let round = 0; round < rounds; round++) {
    for (const contest of contests) {
      const home = await startHome(contest.pollMaxNs);
      const count = contest.depth === 1 ? requests : 10 * requests;
      runs.get(contest)!.push(...(await clients([home.disk], [contest.manner, contest.depth, count])));
      await stopHome(home);
    }
  }
  console.log(
    `\n${markdownTable(
      HEAD,
      [...runs].map(([contest, list]) => row(contest, list)),
    )}\n`,
  );
  const best = (depth: number, polls: boolean, of: (report: ClientReport) => number, pick: typeof Math.min): number => {
    const fit = [...runs].filter(([c]) => c.depth === depth && c.pollMaxNs > 0 === polls && c.manner !== 'sync');
    return pick(...fit.map(([, list]) => median(list.map(of))));
  };
  const polling = best(1, true, (r) => r.p50, Math.min);
  const sleeping = best(1, false, (r) => r.p50, Math.min);
  const perSecond = Math.max(...[true, false].map((polls) => best(32, polls, (r) => r.good / r.seconds, Math.max)));
  const held = [
    bar('a round trip while the IOThread polls: at most 12 µs', polling, polling <= GOALS.pollingUs),
    bar('a round trip while it sleeps: at most 35 µs', sleeping, sleeping <= GOALS.sleepingUs),
    bar('depth 32: at least 500k/s', perSecond, perSecond >= GOALS.perSecond),
    await besideMain(small ? 1 : rounds, small ? 5000 : Number(given.get('busy'))),
  ];
  return held.every((one) => one) || small ? 0 : 1;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
