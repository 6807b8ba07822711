/**
 * All nodes are drained again and again while jobs run and clients write: no drain hangs. How long one takes:
 * `npm run bench -- drain`.
 *
 * BLOCKPLANE_TEST_TIER=long: 1,000 times; BLOCKPLANE_DRAINS for another number.
 */
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon } from '../src/daemon/index.ts';
import { type Disk, open } from '../src/index.ts';
import { scratch, sparse } from './harness.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const TIMES = Number(process.env.BLOCKPLANE_DRAINS ?? (LONG ? 1000 : 30));
const MiB = 1024 * 1024;
const SIZE = 64 * MiB;
const JOBS = 8;
const CLIENTS = 16;
/** Bytes a second: the jobs last as long as the test, and those that end are begun again. */
const SPEED = 4 * MiB;

const file = (directory: string, name: string) =>
  ({ driver: 'file', filename: sparse(join(directory, name), SIZE) }) as const;

async function start(t: TestContext, daemon: Daemon): Promise<Disk[]> {
  const directory = scratch(t);
  const path = join(directory, 'nbd');
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } }, 'max-connections': 100 });
  for (let n = 0; n < JOBS; n++) {
    const names = [`disk${n}`, `target${n}`];
    for (const name of names) {
      await daemon.run('blockdev-add', { driver: 'raw', 'node-name': name, file: file(directory, name) });
    }
    await daemon.run('block-export-add', { type: 'nbd', id: `e${n}`, 'node-name': `disk${n}`, writable: true });
  }
  const disks: Disk[] = [];
  for (let n = 0; n < CLIENTS; n++) {
    disks.push(await open(`nbd+unix:///disk${n % JOBS}?socket=${path}`, { format: 'raw' }));
  }
  return disks;
}

async function begin(daemon: Daemon, n: number): Promise<void> {
  const what = { 'job-id': `j${n}`, device: `disk${n}`, target: `target${n}`, sync: 'full', speed: SPEED } as const;
  if (n % 2 === 0) await daemon.run('blockdev-backup', what);
  else await daemon.run('blockdev-mirror', { ...what, 'copy-mode': n % 4 === 1 ? 'write-blocking' : 'background' });
}

/** One drained section of all disks, in which each gets a bitmap; these go again. */
async function drained(daemon: Daemon, name: string): Promise<void> {
  const actions = Array.from({ length: JOBS }, (_, i) => {
    return { type: 'block-dirty-bitmap-add', data: { node: `disk${i}`, name } } as const;
  });
  await daemon.run('transaction', { actions });
  for (const { data } of actions) await daemon.run('block-dirty-bitmap-remove', data);
}

/** Mirrors that are ready end, and what has ended is begun again. */
async function goOn(daemon: Daemon): Promise<void> {
  for (const { id, status } of await daemon.run('query-jobs', {})) {
    // It may have ended since.
    if (status === 'ready') await daemon.run('block-job-cancel', { device: id }).catch(() => undefined);
  }
  const running = new Set((await daemon.run('query-jobs', {})).map(({ id }) => id));
  for (let i = 0; i < JOBS; i++) if (!running.has(`j${i}`)) await begin(daemon, i);
}

test('a drain ends while 8 jobs and 16 clients run', { timeout: 60_000 + TIMES * 1000 }, async (t) => {
  await using daemon = await Daemon.start();
  const disks = await start(t, daemon);
  for (let n = 0; n < JOBS; n++) await begin(daemon, n);
  let over = false;
  let written = 0;
  const clients = disks.map(async (disk, n) => {
    for (let at = n * 4096; !over; at = (at + 1_052_672) % (SIZE - 4096)) {
      await disk.write(new Uint8Array(4096).fill(n + 1), 0, 4096, at);
      written++;
    }
  });
  try {
    for (let n = 0; n < TIMES; n++) {
      const before = written;
      await drained(daemon, `b${n}`);
      await goOn(daemon);
      while (written === before) await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    over = true;
    await Promise.all(clients);
  }
  for (const disk of disks) await disk.close();
});
