/** Clients on their way to the thread of their node, while all that may happen there happens. */
import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { whyNoRing } from '../../src/aio/select.ts';
import { Daemon } from '../../src/daemon/index.ts';
import { RawClient } from '../../src/exports/nbd/raw-client.ts';
import { customNode, IOThread, open } from '../../src/index.ts';
import { NbdService } from '../../src/lib/nbd.ts';
import { Command } from '../../src/proto/nbd/constants.ts';
import { pattern, scratch } from '../harness.ts';

const MIB = 1 << 20;
const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
/** Without io_uring nobody is handed over. */
const ring = process.env.BLOCKPLANE_AIO !== 'pool' && (await whyNoRing()) === undefined;
const RING = { skip: !ring && 'io_uring is not used here', timeout: 60_000 };

interface Stage {
  readonly daemon: Daemon;
  readonly path: string;
  /** Offers 'a' (in io0) or 'b' (in io1). */
  readonly show: (name: string) => Promise<void>;
  readonly hide: (name: string, mode: 'safe' | 'hard') => Promise<void>;
}

/** Two nodes in a thread each, their first MiB as {@link pattern} says, and their exports. */
async function stage(t: TestContext): Promise<Stage> {
  const directory = scratch(t);
  const path = join(directory, 'nbd');
  const daemon = await Daemon.start();
  t.after(() => daemon.close());
  await daemon.run('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  const show = (name: string): Promise<void> =>
    daemon.run('block-export-add', { type: 'nbd', id: name, 'node-name': name, writable: true }) as never;
  for (const [i, name] of ['a', 'b'].entries()) {
    const filename = join(directory, `${name}.raw`);
    writeFileSync(filename, pattern(MIB, i + 1));
    await daemon.run('object-add', { 'qom-type': 'iothread', id: `io${i}` });
    await daemon.run('blockdev-add', { driver: 'raw', 'node-name': name, file: { driver: 'file', filename } });
    await daemon.run('x-blockdev-set-iothread', { 'node-name': name, iothread: `io${i}` });
    await show(name);
    assert.equal(daemon.nodes.find(name)!.name, `io${i}`);
  }
  return { daemon, path, show, hide: (id, mode) => daemon.run('block-export-del', { id, mode }) as never };
}

/** A session that is served whole and right, or ends: 'served', 'refused' or 'cut'. */
async function visit(path: string, name: string, seed: number): Promise<string> {
  const client = await RawClient.connect(path);
  try {
    await client.go(name);
  } catch {
    await client.destroy();
    return 'refused';
  }
  client.request(Command.READ, 4096, 8192);
  const reply = await client.simpleReply();
  const data = reply?.error === 0 ? await client.read(8192) : Buffer.alloc(0);
  const whole = data.length === 8192;
  if (whole) assert.ok(data.equals(pattern(MIB, seed).subarray(4096, 12_288)), `bytes of ${name}`);
  client.request(Command.DISC, 0, 0);
  await client.closed;
  return whole ? 'served' : 'cut';
}

test(
  'clients come while their exports go and come back, and nodes are drained: served right, or gone',
  RING,
  async (t) => {
    const { daemon, path, show, hide } = await stage(t);
    for (let round = 0; round < (LONG ? 600 : 40); round++) {
      const visits = [0, 1, 2, 3].map(async (i) => {
        // Each a step further on its way when the export goes.
        for (let turn = 0; turn < (round + i) % 7; turn++) await new Promise((resolve) => setImmediate(resolve));
        const outcome = await visit(path, i % 2 === 0 ? 'a' : 'b', (i % 2) + 1);
        // That one stays.
        if (i % 2 === 1) assert.equal(outcome, 'served');
      });
      const safe = round % 3 === 0;
      const gone = await hide('a', safe ? 'safe' : 'hard').then(
        () => true,
        (error) => {
          assert.match(String(error), safe ? /still in use/ : /never/);
          return false;
        },
      );
      // Drained for the time of each.
      await daemon.run('block-dirty-bitmap-add', { node: 'b', name: 'm' });
      await daemon.run('block-dirty-bitmap-remove', { node: 'b', name: 'm' });
      if (gone) await show('a');
      await Promise.all(visits);
    }
    await hide('a', 'hard');
    await hide('b', 'hard');
    for (const node of ['a', 'b']) await daemon.run('blockdev-del', { 'node-name': node });
    for (const id of ['io0', 'io1']) await daemon.run('object-del', { id });
  },
);

test('an export that is being added is there whole for a client, or not at all', RING, async (t) => {
  const { path, show, hide } = await stage(t);
  for (let round = 0; round < (LONG ? 500 : 50); round++) {
    await hide('a', 'hard');
    const shown = show('a');
    for (let turn = 0; turn < round % 5; turn++) await new Promise((resolve) => setImmediate(resolve));
    assert.match(await visit(path, 'a', 1), /served|refused/);
    await shown;
  }
});

test('an iothread with clients is not removed, and a server stops while clients are greeted', RING, async (t) => {
  const { daemon, path } = await stage(t);
  const clients = [await RawClient.connect(path), await RawClient.connect(path), await RawClient.connect(path)];
  await clients[0]!.go('a');
  await clients[1]!.go('b');
  await assert.rejects(daemon.run('object-del', { id: 'io0' }), /in use/);
  const exports = await daemon.run('query-block-exports', {});
  assert.deepEqual(
    exports.map(({ id, 'shutting-down': down }) => [id, down]),
    [
      ['a', false],
      ['b', false],
    ],
  );
  const late = clients[2]!.go('a').catch(() => undefined);
  await daemon.run('nbd-server-stop', {});
  for (const client of clients) await client.closed;
  await late;
  assert.deepEqual(await daemon.run('query-block-exports', {}), []);
  for (const node of ['a', 'b']) await daemon.run('blockdev-del', { 'node-name': node });
  for (const id of ['io0', 'io1']) await daemon.run('object-del', { id });
});

const descriptors = (): number => readdirSync('/proc/self/fd').length;

test('1,000 clients that come and go leave no descriptor and no memory behind', RING, async (t) => {
  const { path } = await stage(t);
  const come = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i++) assert.equal(await visit(path, i % 2 === 0 ? 'a' : 'b', (i % 2) + 1), 'served');
  };
  // What is kept for the next client is there after some.
  await come(500);
  const [files, memory] = [descriptors(), process.memoryUsage().rss];
  await come(500);
  // Those of the last clients are closed when their thread comes to it.
  while (descriptors() > files + 2) await new Promise((resolve) => setImmediate(resolve));
  const grown = (process.memoryUsage().rss - memory) / MIB;
  assert.ok(grown < 32, `${grown.toFixed(1)} MiB more`);
});

test('a thread that dies takes its clients with it, and those of other threads do not notice', RING, async (t) => {
  const path = join(scratch(t), 'nbd');
  const home = await IOThread.start();
  const doomed = await IOThread.start({ drivers: [new URL('../ram-driver.js', import.meta.url)] });
  t.after(() => home.stop());
  const service = await NbdService.start([home], [], START(path), undefined, true);
  const safe = await open('null-co://', { iothread: home });
  const disk = await open(customNode({ driver: 'ram', size: MIB, trouble: 'crash' }), { iothread: doomed });
  await service.addExport({ disk, exportName: 'doomed' });
  await service.addExport({ disk: safe, exportName: 'safe' });
  const clients = [await RawClient.connect(path), await RawClient.connect(path)];
  await clients[0]!.go('doomed');
  await clients[1]!.go('safe');
  const crashed = new Promise((resolve) => doomed.once('crash', resolve));
  clients[0]!.request(Command.READ, 0, 512);
  await crashed;
  await clients[0]!.closed;
  clients[1]!.request(Command.READ, 0, 512);
  assert.equal((await clients[1]!.simpleReply())?.error, 0);
  assert.equal(await visit(path, 'doomed', 1), 'cut');
  await service.removeExport('doomed');
  assert.equal(await visit(path, 'doomed', 1), 'refused');
  await service.stop();
  await clients[1]!.closed;
  await safe.close();
  await assert.rejects(disk.close(), { code: 'EIO' });
});

const START = (path: string): Parameters<typeof NbdService.start>[2] => ({
  listen: [{ kind: 'unix', path }],
  ...{ mode: undefined, maxConnections: undefined, handshakeSeconds: undefined, byteBudget: undefined, tls: undefined },
});
