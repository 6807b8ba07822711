/** A throttle group of a program holds for nodes in every IOThread of it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IOThread } from './iothread.ts';
import { ObjectStore } from './objects/store.ts';
import { addObject } from './objects/text.ts';
import { open } from './open.ts';
import type { BlockdevOptions } from './options.ts';

const limited = (id: string): BlockdevOptions => ({
  driver: 'throttle',
  'throttle-group': id,
  file: { driver: 'null-co', size: 65_536 },
});

test('disks in two threads share a group, which stays while they are open', { timeout: 30_000 }, async () => {
  const objects = new ObjectStore();
  // One request of 512 bytes in 512 seconds, a hundred of them at first.
  await addObject(objects, 'throttle-group,id=g,x-iops-total=1,x-iops-total-max=51200,x-iops-size=1');
  const threads = [await IOThread.start({ aio: 'pool' }), await IOThread.start({ aio: 'pool' })];
  const [one, other] = [
    await open(limited('g'), { objects, iothread: threads[0]! }),
    await open(limited('g'), { objects, iothread: threads[1]! }),
  ];
  const buffer = new Uint8Array(512);
  // The bucket may be over full once.
  for (let i = 0; i < 101; i++) await one!.read(buffer, 0, 512, 0);
  let ended = false;
  const waits = other!.read(buffer, 0, 512, 0).finally(() => {
    ended = true;
  });
  for (let i = 0; i < 20; i++) await other!.flush();
  assert.equal(ended, false, 'what one disk has used up the other does not have');
  await assert.rejects(objects.remove('g'), { code: 'EBUSY' });
  await objects.setProperty('g', 'limits', { 'iops-total': 0, 'iops-total-max': 0, 'iops-size': 0 });
  await waits;
  for (const disk of [one!, other!]) await disk.close();
  await objects.remove('g');
  for (const thread of threads) await thread.stop();
});

test('limits as an object, and what cannot be one, refused by name', async () => {
  const objects = new ObjectStore();
  await addObject(objects, '{"qom-type":"throttle-group","id":"a","limits":{"bps-read":1000,"bps-write":10}}');
  await addObject(objects, 'throttle-group,id=b,limits.iops-total=5,limits.iops-size=4k');
  const wrongs: [string, RegExp][] = [
    ['throttle-group,id=c,limits.speed=5', /'speed' is unexpected/],
    ['throttle-group,id=c,x-bps-total=5,x-bps-read=5', /'bpsTotal' cannot be given with/],
    ['throttle-group,id=c,x-bps-total-max=5', /'bpsTotal' has a 'max' and no 'avg'/],
    ['{"qom-type":"throttle-group","id":"c","limits":5}', /'limits', expected: object/],
    ['throttle-group,id=c,x-iops-size=4k', /'iopsSize' needs a limit of requests/],
  ];
  for (const [text, message] of wrongs) await assert.rejects(addObject(objects, text), { code: 'EINVAL', message });
  await assert.rejects(open(limited('none'), { objects }), { code: 'ENOENT', message: /throttle group/ });
  await objects.remove('a');
  await objects.remove('b');
});
