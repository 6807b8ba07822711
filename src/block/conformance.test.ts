import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import { backends } from '../aio/testing.ts';
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

const directory = await mkdtemp(join(tmpdir(), 'blockplane-conformance-'));
const contexts: AioContext[] = [];
let files = 0;
after(async () => {
  for (const context of contexts) await context.stop();
  await rm(directory, { recursive: true });
});

async function imageFile(size: number): Promise<string> {
  const path = join(directory, `image${files++}`);
  await writeFile(path, '');
  await truncate(path, size);
  return path;
}

function suite(context: AioContext, name: string, options: (size: number) => Promise<NodeOptions> | NodeOptions): void {
  driverConformance({
    test,
    name: `${name} [${context.backend.name}]`,
    writable: true,
    open: async (size) => {
      const blk = await BlockBackend.open(context, await options(size));
      return { blk, close: () => blk.close() };
    },
  });
}

for (const choice of backends()) {
  const context = new AioContext(await chooseBackend(choice));
  contexts.push(context);
  suite(context, 'file', async (size) => ({ driver: 'file', filename: await imageFile(size) }));
  suite(context, 'file that discards', async (size) => ({
    driver: 'file',
    filename: await imageFile(size),
    discard: 'unmap',
    'detect-zeroes': 'unmap',
  }));
  suite(context, 'raw', async (size) => ({
    driver: 'raw',
    discard: 'unmap',
    file: { driver: 'file', filename: await imageFile(size) },
  }));
  suite(context, 'raw window', async (size) => ({
    driver: 'raw',
    offset: 1000,
    size,
    file: { driver: 'file', filename: await imageFile(size + 3000) },
  }));
}

const context = new AioContext(await chooseBackend('pool'));
contexts.push(context);

driverConformance({
  test,
  name: 'null-co',
  writable: true,
  forgets: true,
  open: async (size) => {
    const blk = await BlockBackend.open(context, { driver: 'null-co', size, 'read-zeroes': true });
    return { blk, close: () => blk.close() };
  },
});

for (const style of ['callback', 'coroutine'] as const) {
  for (const [name, limits] of [
    ['plain', {}],
    ['with blocks of 512 and small requests', { alignment: 512, maxTransfer: 16384, maxZero: 8192, maxDiscard: 8192, maxIov: 4 }],
    ['with blocks of 64 KiB', { alignment: 65536 }],
  ] as const) {
    for (const missing of [false, true]) {
      suite(context, `memory, ${style} style, ${name}${missing ? ', without zero and discard' : ''}`, (size) => {
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
  suite(context, `table over blocks of ${unit}`, (size) => {
    const disk = testDisk('conformance', 0);
    disk.limits = { alignment: unit };
    return { driver: 'table', size, discard: 'unmap', file: { driver: 'memory', disk: 'conformance' } };
  });
}
