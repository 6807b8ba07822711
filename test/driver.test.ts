/** Drivers of a program's own: loaded into an IOThread, checked by the conformance suite. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backends } from '../src/aio/testing.ts';
import { type BlockError, customNode, IOThread, open, serveNbd } from '../src/index.ts';
import { driverConformance, openImage } from '../src/lib/conformance.ts';
import { needs, pattern, peer } from './harness.ts';
import ram from './ram-driver.ts';

const MiB = 1024 * 1024;
const RAM = new URL('./ram-driver.js', import.meta.url);

function code(expected: string, message = /./): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    assert.match(error.message, message);
    return true;
  };
}

for (const aio of backends()) {
  driverConformance({
    test,
    name: `a driver of a program's own [${aio}]`,
    open: (size) => openImage({ driver: 'ram', size }, { drivers: [ram as never], aio }),
    writable: true,
  });
}

test('a driver of the program is served like any other, also below raw', needs('qemu-io'), async () => {
  await using thread = await IOThread.start({ drivers: [RAM] });
  await using disk = await open(customNode({ driver: 'ram', size: MiB }), { iothread: thread });
  assert.equal(disk.name, 'ram://');
  await using service = await serveNbd(disk);
  await disk.write(pattern(5000), 0, 5000, 100);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 7 64k 64k', service.uri);
  const { buffer } = await disk.read(new Uint8Array(1000), 0, 1000, 65_536);
  assert.ok(buffer.every((byte) => byte === 7));
  const file = customNode({ driver: 'ram', size: MiB });
  await using window = await open({ driver: 'raw', offset: 512, size: 4096, file }, { iothread: thread });
  assert.equal(window.size, 4096);
});

test('what is no module with drivers is refused with what is wrong, and the thread is gone', async () => {
  const data = (text: string): string => `data:text/javascript,${encodeURIComponent(text)}`;
  const cases: [string | URL, string, RegExp][] = [
    ['ram-driver.js', 'EINVAL', /'ram-driver\.js' is not a file: URL/],
    [new URL('./none.js', import.meta.url), 'EINVAL', /none\.js'.*find module/],
    [data('export const x = 1;'), 'EINVAL', /neither a driver as default nor 'drivers'/],
    [data('export const drivers = 5;'), 'EINVAL', /not an array/],
    [data('export default { name: "x" };'), 'EINVAL', /a name, a role, options and open/],
    [data('export default { name: "raw", role: "format", options: {}, open() {} };'), 'EEXIST', /'raw' already/],
  ];
  for (const [module, errno, message] of cases) {
    await assert.rejects(IOThread.start({ drivers: [module] }), code(errno, message));
  }
  const both = data(`export { default } from ${JSON.stringify(RAM.href)};`);
  await (await IOThread.start({ drivers: [both] })).stop();
});

test('a thread that dies fails what is in flight and what comes later with EIO', async () => {
  const thread = await IOThread.start({ drivers: [RAM], name: 'doomed' });
  const crashed = new Promise<Error>((resolve) => thread.once('crash', resolve));
  const disk = await open(customNode({ driver: 'ram', size: MiB, trouble: 'crash' }), { iothread: thread });
  const service = await serveNbd(disk);
  const told = new Promise<Error>((resolve) => service.once('crash', resolve));
  const other = await open('null-co://', { iothread: thread });
  const dead = /IOThread 'doomed' died: out of luck/;
  const inFlight = [disk.read(new Uint8Array(10), 0, 10, 0), other.flush(), disk.write(new Uint8Array(10), 0, 10, 0)];
  const ended = await Promise.allSettled(inFlight);
  assert.match((await crashed).message, dead);
  assert.match((await told).message, dead);
  for (const result of ended) if (result.status === 'rejected') code('EIO', dead)(result.reason as BlockError);
  await assert.rejects(disk.write(new Uint8Array(10), 0, 10, 0), code('EIO', dead));
  await assert.rejects(disk.stat(), code('EIO', dead));
  await assert.rejects(open('null-co://', { iothread: thread }), code('EIO', dead));
  await assert.rejects(serveNbd(disk), code('EIO', dead));
  await assert.rejects(disk.close(), code('EIO', dead));
});

test('a web stream closes its disk at an error when it was asked to', async () => {
  await using thread = await IOThread.start({ drivers: [RAM] });
  const bad = customNode({ driver: 'ram', size: MiB, trouble: 'error' });
  for (const autoClose of [true, false]) {
    const disk = await open(bad, { iothread: thread });
    const reader = disk.readableWebStream({ autoClose }).getReader();
    await assert.rejects(reader.read(), code('EIO'));
    assert.equal(disk.closed, autoClose);
    await disk.close();
  }
});
