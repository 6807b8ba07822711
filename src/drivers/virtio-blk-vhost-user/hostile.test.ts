/** Back-ends that do what they may not: an error in bounded time, and the next one is used. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Iov } from '../../base/memory.ts';
import { BlockBackend } from '../../block/backend.ts';
import { until } from '../../block/testing.ts';
import { memoryOf } from '../../native/memory.ts';
import { BackRequest, FrontRequest, HeaderFlag } from '../../proto/vhost-user/constants.ts';
import { encodeBits, encodeConfigPart, encodeMessage, encodeU64 } from '../../proto/vhost-user/message.ts';
import { BlkStatus, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { isConnected, skip, withContext } from './testing.ts';
import { FakeBackEnd } from './testing-fake.ts';

const R = FrontRequest;

interface Rig {
  readonly fake: FakeBackEnd;
  open(more?: Readonly<Record<string, unknown>>): Promise<BlockBackend>;
}

function onFake(title: string, body: (rig: Rig) => Promise<void>): void {
  test(title, { skip, timeout: 30_000 }, () =>
    withContext(async (context) => {
      const folder = mkdtempSync(join(tmpdir(), 'vhost-fake-'));
      const path = join(folder, 'socket');
      const fake = new FakeBackEnd(context);
      await fake.listen(path);
      try {
        const open = (more = {}) =>
          BlockBackend.open(context, { driver: 'virtio-blk-vhost-user', path, ...more } as never, {});
        await body({ fake, open });
      } finally {
        await fake.close();
        rmSync(folder, { recursive: true });
      }
    }),
  );
}

const CONFIGS: readonly (readonly [string, RegExp, Partial<FakeBackEnd['config']>])[] = [
  ['blocks of 3 bytes', /block size, 3, is not a power of two/, { blockBytes: 3 }],
  ['blocks of 0 bytes', /block size, 0,/, { blockBytes: 0 }],
  ['blocks of 1 GiB', /block size, 1073741824,/, { blockBytes: 2 ** 30 }],
  ['more than can be', /capacity is beyond 2\^53/, { capacity: 2 ** 52 }],
  ['segments smaller than a block', /size_max, 100, is less than a block/, { sizeMax: 100 }],
];
for (const [what, message, config] of CONFIGS) {
  onFake(`a configuration space that says ${what} is refused`, async ({ fake, open }) => {
    fake.config = { ...fake.config, ...config };
    await assert.rejects(open(), { message });
  });
}

const ANSWERS: readonly (readonly [string, RegExp, number, () => Uint8Array | undefined])[] = [
  ['too short', /answer to GET_FEATURES is too short/, R.GET_FEATURES, () => new Uint8Array(4)],
  ['of an old device', /older than virtio 1.0/, R.GET_FEATURES, () => encodeBits(RingFeature.PROTOCOL_FEATURES, 0)],
  ['without protocol features', /has no protocol features/, R.GET_FEATURES, () => encodeBits(0, 1)],
  ['without a configuration', /shows no configuration/, R.GET_PROTOCOL_FEATURES, () => encodeU64(8)],
  ['with an empty space', /space is too short/, R.GET_CONFIG, () => encodeConfigPart(0, new Uint8Array(0))],
  ['with a space that lies', /space is too short/, R.GET_CONFIG, () => new Uint8Array(72).fill(255)],
  ['of no queues', /has no queues/, R.GET_QUEUE_NUM, () => encodeU64(0)],
  ['that refuses', /has refused SET_MEM_TABLE \(1\)/, R.SET_MEM_TABLE, () => encodeU64(1)],
  ['beyond all bounds', /payload of message 24 has/, R.GET_CONFIG, () => new Uint8Array(5000)],
  ['that never comes', /not answered GET_CONFIG in 0.3 seconds/, R.GET_CONFIG, () => undefined],
  ['that never comes, late', /not answered SET_VRING_ENABLE in 0.3/, R.SET_VRING_ENABLE, () => undefined],
];
for (const [what, message, request, answer] of ANSWERS) {
  onFake(`an answer ${what} is an error`, async ({ fake, open }) => {
    fake.protocol |= 1;
    fake.answers.set(request, answer);
    // Those that come are not to be late, however slow the machine is.
    const late = answer() === undefined;
    await assert.rejects(open(late ? { 'request-timeout': 0.3 } : {}), { message });
  });
}

onFake('a back-end that leaves at any message is an error, and nothing of it stays', async ({ fake, open }) => {
  const count = () => readdirSync('/proc/self/fd').length;
  const maps = () => readFileSync('/proc/self/maps', 'latin1').match(/blockplane-virtio-blk/g)?.length ?? 0;
  const blk = await open();
  await blk.close();
  await until(() => maps() === 0);
  const before = count();
  for (const request of [R.GET_FEATURES, R.SET_OWNER, R.GET_CONFIG, R.SET_MEM_TABLE, R.SET_VRING_KICK]) {
    fake.leaves.add(request);
    await assert.rejects(open(), { message: /Could not open '.*': it has ended the connection/ });
    fake.leaves.clear();
    await until(() => maps() === 0 && count() === before, `what was left at message ${request}`);
  }
});

onFake('an answer that nobody has asked for ends the connection', async ({ fake, open }) => {
  fake.answers.set(R.SET_OWNER, () => encodeConfigPart(0, new Uint8Array(4)));
  fake.protocol &= ~8;
  await assert.rejects(open(), { message: /answers message 3, which nobody has asked/ });
});

/** One read to a back-end that does `wrong`, and one to the next, or to the same where that was just an error. */
function onRead(title: string, wrong: (fake: FakeBackEnd, head: number) => void, leaves = true): void {
  onFake(`${title}: the request fails, and the next one does not`, async ({ fake, open }) => {
    const blk = await open({ 'request-timeout': 2 });
    const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(4096)));
    const failed = assert.rejects(blk.read(0, Iov.of(memory)), { code: 'EIO' });
    await until(() => fake.available === 1);
    wrong(fake, fake.head(0));
    await failed;
    const chains = leaves ? 0 : 1;
    await until(() => fake.connections === 2 - chains && isConnected(blk));
    const read = blk.read(512, Iov.of(memory));
    await until(() => fake.available === chains + 1);
    fake.setStatus(fake.head(chains));
    fake.use(chains, fake.head(chains), 4097, chains + 1);
    await read;
    await blk.close();
  });
}

onRead('an id beyond the ring', (fake) => fake.use(0, 300, 1, 1));
onRead('an id of 2^32 - 1', (fake) => fake.use(0, 2 ** 32 - 1, 1, 1));
onRead('an id that is not in flight', (fake, head) => fake.use(0, (head + 7) % 256, 1, 1));
onRead('a used index that runs ahead', (fake, head) => fake.use(0, head, 4097, 2));
onRead('a used index that jumps', (fake, head) => fake.use(0, head, 4097, 40_000));
onRead('a used index that goes back', (fake, head) => fake.use(0, head, 4097, 65_535));
onRead('a length beyond what may be written', (fake, head) => fake.use(0, head, 4098, 1));
onRead('a length of 2^32 - 1', (fake, head) => fake.use(0, head, 2 ** 32 - 1, 1));
onRead('a socket that is closed', (fake) => fake.socket!.shutdown());
onRead('no answer', () => undefined);
for (const [title, status, length] of [
  ['fewer bytes than were asked for', BlkStatus.OK, 1],
  ['a status that was not written', undefined, 4097],
  ['a status that there is not', 77, 4097],
  ['an error', BlkStatus.IOERR, 4097],
] as const) {
  const wrong = (fake: FakeBackEnd, head: number): void => {
    if (status !== undefined) fake.setStatus(head, status);
    fake.use(0, head, length, 1);
  };
  onRead(title, wrong, false);
}

onFake('links that the device writes over are not followed', async ({ fake, open }) => {
  const blk = await open();
  const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(512)));
  for (let i = 0; i < 300; i++) {
    const reading = blk.read(0, Iov.of(memory));
    await until(() => fake.available === i + 1);
    const head = fake.head(i);
    fake.setStatus(head);
    // A circle, and a link beyond the ring.
    fake.spoil(head, 1, i % 2 === 0 ? head : 60_000);
    fake.use(i, head, 513, i + 1);
    await reading;
  }
  await blk.close();
});

onFake('what is used twice is found', async ({ fake, open }) => {
  const blk = await open();
  const memory = memoryOf(new Uint8Array(new SharedArrayBuffer(512)));
  const both = [blk.read(0, Iov.of(memory)), blk.read(512, Iov.of(memory))];
  const results = Promise.allSettled(both);
  await until(() => fake.available === 2);
  fake.setStatus(fake.head(0));
  fake.use(0, fake.head(0), 513, 1);
  fake.use(1, fake.head(0), 513, 2);
  assert.deepEqual(
    (await results).map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  await blk.close();
});

onFake('a capacity that changes again and again, and messages that are none', async ({ fake, open }) => {
  const blk = await open();
  const sizes: number[] = [];
  blk.users.add({ onResize: (length) => sizes.push(length) });
  const change = encodeMessage(BackRequest.CONFIG_CHANGE);
  for (let i = 0; i < 50; i++) fake.say(change);
  fake.config = { ...fake.config, capacity: 4096 };
  fake.say(change);
  await until(() => blk.length === 4096 * 512);
  assert.deepEqual(sizes, [4096 * 512]);
  // A message that is not known is answered where that is wanted.
  fake.say(encodeMessage(99, new Uint8Array(8), HeaderFlag.NEED_REPLY));
  fake.config = { ...fake.config, capacity: 2 ** 52 };
  fake.say(change);
  await until(() => fake.connections > 1);
  fake.config = { ...fake.config, capacity: 2048 };
  await until(() => blk.length === 2048 * 512);
  const connections = fake.connections;
  fake.say(new Uint8Array(12).fill(255));
  await until(() => fake.connections === connections + 1);
  await blk.close();
});
