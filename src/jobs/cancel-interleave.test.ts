/**
 * A job of every kind, and something that is asked of it at every event of its run in the simulated world: to end, to
 * rest a while, to let its disk be drained. Afterwards the disk is what its guest has made it, the graph is as before
 * or as after, and nobody holds anything. BLOCKPLANE_TEST_TIER=long: at each event, else at some.
 */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { spawn } from '../aio/op.ts';
import { Sim } from '../aio/sim/sim.ts';
import { Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { KiB } from '../base/units.ts';
import { BlockBackend } from '../block/backend.ts';
import { claimOf } from '../block/claims.ts';
import { amend, createImage } from '../block/control.ts';
import { drain } from '../block/drain.ts';
import { type NodeOptions, openNode, releaseNode } from '../block/graph.ts';
import type { BlockNode } from '../block/node.ts';
import { allNodes, registerDriver } from '../block/registry.ts';
import { copyBeforeWriteDriver } from '../drivers/copy-before-write/driver.ts';
import { snapshotAccessDriver } from '../drivers/snapshot-access/driver.ts';
import { BackupJob } from './backup-job.ts';
import { CreateJob } from './create-job.ts';
import type { Job } from './job.ts';
import { VERBS } from './job-states.ts';
import { MirrorJob } from './mirror-job.ts';
import { commitOf } from './testing-commit.ts';
import {
  type ChainFiles,
  chainOf,
  makeChain,
  readAll,
  registerStreamDrivers,
  SHORT_BASE,
  SIZE,
  streamOf,
  useDisk,
} from './testing-stream.ts';

before(() => {
  registerStreamDrivers();
  registerDriver(copyBeforeWriteDriver);
  registerDriver(snapshotAccessDriver);
});

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
/** Events of a run that are tried in the short tier. */
const SAMPLE = 12;
const FILES: ChainFiles = { base: '/base', middle: '/middle', top: '/top' };
const TARGET = '/target';
const OPTIONS = { id: 'job', autoDismiss: false } as const;
const REST_NS = 2_000_000;
const MIRROR = { ...OPTIONS, sync: 'full', granularity: 4 * KiB, bufSize: 64 * KiB } as const;

const complete = (job: Job): void => {
  if (job.status === 'ready' && !job.cancelled) job.complete();
};

interface World {
  readonly context: AioContext;
  readonly blk: BlockBackend;
  readonly target: BlockNode;
}

const raw = (filename: string): NodeOptions => ({ driver: 'raw', file: { driver: 'file', filename } });
const qcow2 = (filename: string, backing?: NodeOptions): NodeOptions =>
  ({ driver: 'qcow2', file: { driver: 'file', filename }, ...(backing ? { backing } : {}) }) as NodeOptions;

interface Kind {
  begin(world: World): Promise<Job> | Job;
  /** Where its disk is once it has ended well. Default: where it was. */
  readonly after?: NodeOptions;
  /** It goes on until it is told to end. */
  readonly endless?: boolean;
}

const backup = (sync: 'full' | 'top' | 'none' | 'bitmap', more: object = {}): Kind => ({
  begin: async ({ blk, target }) => {
    if (sync === 'bitmap') await mark(blk);
    return BackupJob.create(blk.root!, target, { ...OPTIONS, sync, ...more });
  },
});

/** A bitmap of the disk in which its first half is dirty. */
async function mark(blk: BlockBackend): Promise<void> {
  await blk.root!.bitmaps.add('marks', { granularity: 4 * KiB });
  const bytes = await readAll(blk, 0, SIZE / 2);
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length));
  shared.set(bytes);
  await blk.write(0, Iov.of(blk.context.backend.memory(shared)));
}

const KINDS: Readonly<Record<string, Kind>> = {
  stream: { begin: ({ blk }) => streamOf(blk, FILES, false, OPTIONS), after: qcow2(FILES.top) },
  'stream above a base': {
    begin: ({ blk }) => streamOf(blk, FILES, true, OPTIONS),
    after: qcow2(FILES.top, raw(FILES.base)),
  },
  commit: { begin: ({ blk }) => commitOf(blk, FILES, 'middle', OPTIONS), after: qcow2(FILES.top, raw(FILES.base)) },
  'active commit': {
    begin: ({ blk }) => commitOf(blk, FILES, 'top', { ...OPTIONS, onStatus: complete }),
    after: raw(FILES.base),
  },
  mirror: {
    begin: ({ blk, target }) => MirrorJob.create(blk.root!, target, { ...MIRROR, onStatus: complete }),
    after: raw(TARGET),
  },
  'mirror that writes to both': {
    begin: ({ blk, target }) =>
      MirrorJob.create(blk.root!, target, { ...MIRROR, copyMode: 'write-blocking', onStatus: complete }),
    after: raw(TARGET),
  },
  'backup of all': backup('full'),
  'backup of a layer': backup('top'),
  'backup of what is written over': { ...backup('none'), endless: true },
  'backup of what is dirty': backup('bitmap', { bitmap: 'marks', bitmapMode: 'on-success' }),
  create: { begin: ({ context }) => new CreateJob(context, () => makeNew(context), OPTIONS) },
  amend: { begin: ({ context, blk }) => new CreateJob(context, () => amend(blk, { compat: '1.1' }), OPTIONS, 'amend') },
};

async function makeNew(context: AioContext): Promise<void> {
  const file = await openNode(context, { driver: 'file', filename: '/new', 'node-name': 'new' } as NodeOptions);
  try {
    await createImage(context, 'qcow2', { file: 'new' } as never, { size: 64 * KiB });
  } finally {
    await releaseNode(file);
  }
}

type Asked = 'nothing' | 'cancel' | 'pause' | 'drain';

const ASK: Readonly<Record<Asked, (sim: Sim, job: Job, blk: BlockBackend) => void>> = {
  nothing: () => undefined,
  cancel: (_, job) => {
    if (VERBS.cancel.includes(job.status)) job.cancel(true);
  },
  pause: (sim, job) => {
    if (!VERBS.pause.includes(job.status)) return;
    job.pause();
    sim.after(REST_NS, () => VERBS.resume.includes(job.status) && job.resume());
  },
  drain: (sim, _, blk) =>
    spawn(
      drain(blk.root!).then((section) => {
        sim.after(REST_NS, () => section[Symbol.dispose]());
      }),
    ),
};

/** The graph below a node, who uses each one of it, and how. */
function shapeOf(node: BlockNode): string {
  const parents = node.parents.map(({ perm, shared }) => `${perm}/${shared}`).sort();
  const below = node.children.map((child) => `${child.role} ${shapeOf(child.node)}`).sort();
  return `${node.driver.name} ${node.readOnly} [${parents.join()}] {${below.join()}}`;
}

type Images = ReadonlyMap<string, Uint8Array>;

/** The images, and what the disk holds. */
async function prepare(): Promise<{ readonly images: Images; readonly content: Uint8Array }> {
  const sim = new Sim(3);
  for (const path of Object.values(FILES)) sim.writeDisk(path, new Uint8Array(0));
  const context = new AioContext(sim.backend());
  const content = await sim.complete(makeChain(context, FILES, 3, SHORT_BASE));
  await context.stop();
  return { images: new Map(Object.values(FILES).map((path) => [path, sim.readDisk(path)!])), content };
}

async function contentOf(sim: Sim, tree: NodeOptions): Promise<Uint8Array> {
  const context = new AioContext(sim.backend());
  const blk = await sim.complete(BlockBackend.open(context, tree, { readOnly: true }));
  const bytes = await sim.complete(readAll(blk));
  await sim.complete(blk.close());
  await context.stop();
  return bytes;
}

interface End {
  readonly events: number;
  readonly shape: string;
  readonly well: boolean;
}

async function run(
  kind: Kind,
  images: Images,
  content: Uint8Array,
  at: number,
  asked: Asked,
  what: string,
): Promise<End> {
  const sim = new Sim(5);
  for (const [path, bytes] of images) sim.writeDisk(path, bytes);
  sim.writeDisk(TARGET, new Uint8Array(SIZE).fill(0xee));
  sim.writeDisk('/new', new Uint8Array(0));
  const context = new AioContext(sim.backend());
  const blk = await sim.complete(BlockBackend.open(context, chainOf(FILES, false)));
  const target = await sim.complete(openNode(context, { ...raw(TARGET), 'node-name': 'target' } as NodeOptions));
  const model = Uint8Array.from(content);
  const job = await sim.complete(Promise.resolve(kind.begin({ context, blk, target })));
  const guest = useDisk(blk, model, 9, 3);
  job.start();
  if (kind.endless) void guest.then(() => VERBS.cancel.includes(job.status) && job.cancel(true));
  let over = false;
  const ended = Promise.all([guest, job.ended]).finally(() => {
    over = true;
  });
  ended.catch(() => undefined);
  let events = 0;
  await sim.run(() => {
    if (!over && events++ === at) ASK[asked](sim, job, blk);
    return over;
  });
  await ended;
  // What was asked for last may have an end of its own.
  await sim.complete(new Promise<void>((resolve) => void sim.after(2 * REST_NS, resolve)));
  const well = job.error === undefined;
  const mayEnd = asked === 'cancel' || kind.endless === true;
  assert.ok(well || (mayEnd && job.error?.errno === Errno.ECANCELED), `${what}: ${job.error?.message}`);
  assert.equal(job.status, 'concluded', what);
  assert.ok(Buffer.compare(await sim.complete(readAll(blk)), model) === 0, `${what}: the guest's disk`);
  for (const node of allNodes()) assert.equal(claimOf(node), undefined, `${what}: ${node.name}`);
  const shape = shapeOf(blk.root!);
  await sim.complete(blk.close());
  await sim.complete(releaseNode(target).catch(() => undefined));
  assert.deepEqual(allNodes(), [], what);
  await context.stop();
  const tree = (well ? kind.after : undefined) ?? chainOf(FILES, false);
  assert.ok(Buffer.compare(await contentOf(sim, tree), model) === 0, `${what}: opened again`);
  return { events, shape, well };
}

for (const [name, kind] of Object.entries(KINDS)) {
  test(`${name}: whatever comes in between, all of it was done or nothing`, { timeout: 600_000 }, async (t) => {
    const { images, content } = await prepare();
    const whole = await run(kind, images, content, -1, 'nothing', name);
    const none = await run(kind, images, content, 0, 'cancel', `${name} that is cancelled at once`);
    const tried: string[] = [];
    for (const asked of ['cancel', 'pause', 'drain'] as const) {
      const step = LONG ? 1 : Math.max(1, Math.floor(whole.events / (asked === 'cancel' ? SAMPLE : SAMPLE / 3)));
      let [well, count] = [0, 0];
      for (let at = 0; at < whole.events; at += step) {
        const what = `${name}, ${asked} at event ${at}`;
        const end = await run(kind, images, content, at, asked, what);
        assert.equal(end.shape, end.well ? whole.shape : none.shape, what);
        if (end.well) well++;
        count++;
      }
      tried.push(`${asked} at ${count} (${well} ended well)`);
    }
    t.diagnostic(`${whole.events} events: ${tried.join(', ')}`);
  });
}
