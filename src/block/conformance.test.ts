import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { type BackendChoice, chooseBackend } from '../aio/select.ts';
import { Sim } from '../aio/sim/sim.ts';
import { backends } from '../aio/testing.ts';
import { copyOnReadDriver } from '../drivers/copy-on-read/driver.ts';
import { fileDriver } from '../drivers/file/driver.ts';
import { nullDriver } from '../drivers/null-co/driver.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend } from './backend.ts';
import { driverConformance } from './conformance.ts';
import type { NodeOptions } from './graph.ts';
import { registerDriver } from './registry.ts';
import { registerTestDrivers, testDisk } from './testing.ts';
import { tableDriver } from './testing-format.ts';

registerDriver(nullDriver, 'null-aio');
registerDriver(rawDriver);
registerDriver(fileDriver);
registerDriver(tableDriver);
registerTestDrivers();
registerDriver(copyOnReadDriver);

const directory = await mkdtemp(join(tmpdir(), 'blockplane-conformance-'));
let files = 0;
after(() => rm(directory, { recursive: true }));

async function imageFile(size: number): Promise<string> {
  const path = join(directory, `image${files++}`);
  await writeFile(path, '');
  await truncate(path, size);
  return path;
}

/** One context at a time: each of them may put the thread to sleep. */
function suite(
  choice: BackendChoice,
  name: string,
  options: (size: number) => Promise<NodeOptions> | NodeOptions,
  forgets = false,
): void {
  driverConformance({
    test,
    name: `${name} [${choice}]`,
    writable: true,
    forgets,
    open: async (size) => {
      const context = new AioContext(await chooseBackend(choice));
      const blk = await BlockBackend.open(context, await options(size));
      return {
        blk,
        close: async () => {
          await blk.close();
          await context.stop();
        },
      };
    },
  });
}

for (const choice of backends()) {
  suite(choice, 'file', async (size) => ({ driver: 'file', filename: await imageFile(size) }));
  suite(choice, 'file that discards', async (size) => ({
    driver: 'file',
    filename: await imageFile(size),
    discard: 'unmap',
    'detect-zeroes': 'unmap',
  }));
  suite(choice, 'raw', async (size) => ({
    driver: 'raw',
    discard: 'unmap',
    file: { driver: 'file', filename: await imageFile(size) },
  }));
  suite(choice, 'raw window', async (size) => ({
    driver: 'raw',
    offset: 1000,
    size,
    file: { driver: 'file', filename: await imageFile(size + 3000) },
  }));
}

for (const [name, options] of [
  ['file', { driver: 'file', filename: '/image' }],
  ['raw', { driver: 'raw', discard: 'unmap', file: { driver: 'file', filename: '/image' } }],
] as const) {
  driverConformance({
    test,
    name: `${name} [sim]`,
    writable: true,
    open: async (size) => {
      const sim = new Sim(size, { chances: { read: { short: 0.2 }, write: { short: 0.2 } } });
      sim.driveItself();
      sim.writeDisk('/image', new Uint8Array(size));
      const context = new AioContext(sim.backend());
      const blk = await BlockBackend.open(context, options);
      return {
        blk,
        close: async () => {
          await blk.close();
          await context.stop();
        },
      };
    },
  });
}

const any = backends().at(-1)!;

suite(any, 'null-co', (size) => ({ driver: 'null-co', size, 'read-zeroes': true }), true);

for (const style of ['callback', 'coroutine'] as const) {
  for (const [name, limits] of [
    ['plain', {}],
    [
      'with blocks of 512 and small requests',
      { alignment: 512, maxTransfer: 16384, maxZero: 8192, maxDiscard: 8192, maxIov: 4 },
    ],
    ['with blocks of 64 KiB', { alignment: 65536 }],
  ] as const) {
    for (const missing of style === 'callback' ? [false, true] : [false]) {
      suite(any, `memory, ${style} style, ${name}${missing ? ', without zero and discard' : ''}`, (size) => {
        const disk = testDisk('conformance', size);
        disk.style = style;
        disk.limits = limits;
        if (missing) {
          disk.missing.add('zero');
          disk.missing.add('discard');
        }
        return { driver: 'memory', disk: 'conformance', discard: 'unmap' };
      });
    }
  }
}

for (const unit of [1, 512, 8192]) {
  suite(any, `table over blocks of ${unit}`, (size) => {
    const disk = testDisk('conformance', 0);
    disk.limits = { alignment: unit };
    return { driver: 'table', size, discard: 'unmap', file: { driver: 'memory', disk: 'conformance' } };
  });
}

suite(any, 'copy-on-read over a table over zeroes', (size) => {
  testDisk('conformance', 0);
  testDisk('below', size / 2);
  const [file, backing] = ['conformance', 'below'].map((disk) => ({ driver: 'memory', disk }));
  return { driver: 'copy-on-read', discard: 'unmap', file: { driver: 'table', size, file, backing } };
});
