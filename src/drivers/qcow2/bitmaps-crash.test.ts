/** Whatever ends a session, and whoever has had the image: a bitmap in it is right, or it says that it is not. */
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, peer, run, scratch } from '../../../test/harness.ts';
import { Errno } from '../../base/errors.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { testDisk, testIov } from '../../block/testing.ts';
import { inspect } from '../../lib/inspect.ts';
import { Autoclear, ExtensionType } from '../../proto/qcow2/constants.ts';
import { parseHeader } from '../../proto/qcow2/header.ts';
import { bitmapsExtension, extension } from '../../proto/qcow2/header-extensions.ts';
import type { Qcow2CreateOptions } from './create-options.ts';
import { makeImage } from './testing.ts';
import {
  checked,
  type Extents,
  extentsOf,
  headerOf,
  patchHeader,
  peerExtents,
  peerList,
  setting,
} from './testing-bitmaps.ts';

const PEERS = needs('qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo');
const { context, open, make } = setting();

test('a process that dies leaves bitmaps in use, and one that nobody has changed as it is', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  let blk = await open(path);
  await blk.root!.bitmaps.add('on', { persistent: true });
  (await blk.root!.bitmaps.add('off', { persistent: true, disabled: true })).mark(0, 1);
  await blk.close();
  blk = await open(path);
  await blk.write(MiB, testIov(context, [512]));
  await blk.flush();
  const dead = `${path}.dead`;
  copyFileSync(path, dead);
  await blk.close();
  assert.deepEqual(await peerList(path), ['on 65536 auto', 'off 65536 ']);
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['on 65536 in-use,auto', 'off 65536 ']);
  assert.deepEqual(await peerExtents(dead, 'off'), [[0, 64 * KiB]]);
  blk = await open(dead);
  const { bitmaps } = blk.root!;
  assert.deepEqual(
    bitmaps.list().map((b) => `${b.name} ${b.inconsistent}`),
    ['on true', 'off false'],
  );
  await assert.rejects(bitmaps.clear('on'), { code: 'EINVAL', message: /inconsistent/ });
  await blk.truncate(4 * MiB);
  await blk.close();
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['on 65536 in-use,auto', 'off 65536 '], 'kept as it is');
  blk = await open(dead);
  await blk.root!.bitmaps.remove('on');
  await blk.close();
  await checked(dead);
  assert.deepEqual(await peerList(dead), ['off 65536 ']);
});

test('what QEMU left in use when it died is inconsistent', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  await peer('qemu-img', 'bitmap', '--add', path, 'b');
  const { signal } = await run('qemu-io', ['-c', 'write 0 64k', '-c', 'sigraise 9', path]);
  assert.equal(signal, 'SIGKILL');
  for (const more of [{ 'read-only': true }, {}]) {
    const blk = await open(path, more);
    assert.equal(blk.root!.bitmaps.get('b').inconsistent, true);
    await blk.close();
  }
  assert.deepEqual(await peerList(path), ['b 65536 in-use,auto']);
});

test('bitmaps mean nothing once a program that does not know them has written the image', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const blk = await open(path);
  await blk.root!.bitmaps.add('b', { persistent: true });
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  assert.equal(headerOf(path).autoclear, BigInt(Autoclear.BITMAPS), 'we maintain them');
  // As such a program does; and a bit that is nobody's yet.
  patchHeader(path, (header) => {
    header.autoclear = 1n << 40n;
  });
  const before = readFileSync(path);
  const reading = await open(path, { 'read-only': true });
  assert.deepEqual(reading.root!.bitmaps.list(), []);
  await reading.close();
  assert.ok(readFileSync(path).equals(before), 'read-only changes nothing');
  const writing = await open(path);
  assert.deepEqual(writing.root!.bitmaps.list(), []);
  await writing.close();
  const header = headerOf(path);
  assert.equal(header.autoclear, 0n);
  assert.equal(extension(header, ExtensionType.BITMAPS), undefined);
  const { code } = await run('qemu-img', ['check', '-q', path]);
  assert.equal(code, 3, 'leaks and nothing else');
});

test('opening and closing without a change writes no bits', async (t) => {
  const disk = testDisk('quiet', 0);
  await makeImage(context, { driver: 'memory', disk: 'quiet' }, { size: 8 * MiB } as Qcow2CreateOptions);
  const node: NodeOptions = { driver: 'qcow2', file: { driver: 'memory', disk: 'quiet' } };
  let blk = await BlockBackend.open(context, node);
  await blk.root!.bitmaps.add('b', { granularity: 512, persistent: true });
  await blk.write(0, testIov(context, [512]));
  await blk.close();
  const table = bitmapTable(disk.bytes);
  blk = await BlockBackend.open(context, node);
  await blk.close();
  assert.equal(bitmapTable(disk.bytes), table, 'the same table');
  t.diagnostic(`table at ${table}`);
});

/** Where the table of the first bitmap is. */
function bitmapTable(bytes: Uint8Array): number {
  const place = bitmapsExtension(parseHeader(bytes.subarray(0, 64 * KiB), bytes.length))!;
  return Number(new DataView(bytes.buffer).getBigUint64(place.directoryOffset));
}

/** Sessions on an image, and what its bitmaps are when they are right; a name that is not there may be missing. */
interface Session {
  readonly name: string;
  readonly before: (blk: BlockBackend) => Promise<void>;
  /** What is done before the disk stops, and what while it does. */
  readonly begin: (blk: BlockBackend) => Promise<void>;
  readonly end: (blk: BlockBackend) => Promise<void>;
  readonly right: Readonly<Record<string, Extents>>;
  /** All states there are: in order of the directory. */
  readonly states: readonly string[];
  /** Where data is. */
  readonly data: Extents;
}

const write = (blk: BlockBackend, at: number, length: number): Promise<void> =>
  blk.write(at, testIov(context, [length], 7));

const SESSIONS: readonly Session[] = [
  {
    name: 'several are stored',
    before: async (blk) => {
      const { bitmaps } = blk.root!;
      await bitmaps.add('on', { granularity: 512, persistent: true });
      (await bitmaps.add('off', { granularity: 512, persistent: true, disabled: true })).mark(5000, 1);
      await write(blk, 0, 512);
    },
    begin: async (blk) => {
      await write(blk, 9 * KiB, KiB);
      await blk.root!.bitmaps.add('new', { granularity: 4096, persistent: true });
      await write(blk, 90 * KiB, KiB);
    },
    end: async () => undefined,
    right: {
      on: [
        [0, 512],
        [9 * KiB, KiB],
        [90 * KiB, KiB],
      ],
      off: [[4608, 512]],
      new: [[88 * KiB, 4 * KiB]],
    },
    states: ['on in use, off right', 'on right, off right, new right'],
    data: [
      [0, 512],
      [9 * KiB, KiB],
      [90 * KiB, KiB],
    ],
  },
  {
    name: 'the first one is stored',
    before: (blk) => write(blk, 0, 512),
    begin: async (blk) => {
      await blk.root!.bitmaps.add('on', { granularity: 512, persistent: true });
      await write(blk, 9 * KiB, KiB);
    },
    end: async () => undefined,
    right: { on: [[9 * KiB, KiB]] },
    states: ['', 'on right'],
    data: [
      [0, 512],
      [9 * KiB, KiB],
    ],
  },
  {
    name: 'the last one is removed',
    before: async (blk) => {
      await blk.root!.bitmaps.add('on', { granularity: 512, persistent: true });
      await write(blk, 0, 512);
    },
    begin: (blk) => write(blk, 9 * KiB, KiB),
    end: (blk) => blk.root!.bitmaps.remove('on'),
    right: {},
    states: ['', 'on in use'],
    data: [
      [0, 512],
      [9 * KiB, KiB],
    ],
  },
];

/** The image when its disk fails for good after some operations of the session's end. */
async function dying(
  session: Session,
  operations: number,
  errno: number,
): Promise<{ bytes: Uint8Array; stopped: boolean }> {
  const disk = testDisk('dying', 0);
  const file = { driver: 'memory', disk: 'dying' };
  await makeImage(context, file, { size: MiB, 'cluster-size': 512 } as Qcow2CreateOptions);
  const node: NodeOptions = { driver: 'qcow2', file };
  const setUp = await BlockBackend.open(context, node);
  await session.before(setUp);
  await setUp.close();
  const blk = await BlockBackend.open(context, node);
  await session.begin(blk);
  await blk.flush();
  let left = operations;
  disk.take = (op) => (op === 'read' || left-- > 0 ? {} : { errno });
  const failures: unknown[] = [];
  await session.end(blk).catch((error: unknown) => failures.push(error));
  await blk.close().catch((error: unknown) => failures.push(error));
  const stopped = left < 0;
  assert.equal(failures.length > 0, stopped, `after ${operations} operations: ${failures[0]}`);
  return { bytes: disk.bytes, stopped };
}

for (const session of SESSIONS) {
  for (const errno of ['ENOSPC', 'EIO'] as const) {
    test(
      `${session.name}: wherever it ends with ${errno}, bitmaps are right or in use`,
      needs('qemu-img'),
      async (t) => {
        const path = join(scratch(t), 'image.qcow2');
        const seen = new Set<string>();
        for (let operations = 0, going = true; going; operations++) {
          const { bytes, stopped } = await dying(session, operations, Errno[errno]);
          going = stopped;
          writeFileSync(path, bytes);
          const { code, stdout, stderr } = await run('qemu-img', ['check', path]);
          assert.ok(code === 0 || code === 3, `after ${operations} operations: ${stdout}${stderr}`);
          const blk = await open(path);
          const states = blk.root!.bitmaps.list().map((bitmap) => {
            if (bitmap.inconsistent) return `${bitmap.name} in use`;
            assert.deepEqual(extentsOf(bitmap), session.right[bitmap.name], `${operations}: ${bitmap.name}`);
            return `${bitmap.name} right`;
          });
          seen.add(states.join(', '));
          for (const [at, length] of session.data) {
            const iov = testIov(context, [length]);
            await blk.read(at, iov);
            assert.deepEqual(iov.run(0), testIov(context, [length], 7).run(0), `${operations}: data at ${at}`);
          }
          await blk.close();
          assert.ok(operations < 100, 'it comes to an end');
        }
        assert.deepEqual([...seen].sort(), [...session.states].sort());
      },
    );
  }
}

test('a checkpoint puts the bits into the file and leaves them in use', PEERS, async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const blk = await open(path);
  await blk.root!.bitmaps.add('b', { persistent: true });
  await blk.write(0, testIov(context, [512]));
  {
    using _drained = await blk.drain();
    await blk.root!.bitmaps.store(true);
  }
  assert.deepEqual(headerOf(path).autoclear, BigInt(Autoclear.BITMAPS));
  copyFileSync(path, `${path}.dead`);
  assert.deepEqual(await peerList(`${path}.dead`), ['b 65536 in-use,auto']);
  await checked(`${path}.dead`);
  await blk.write(MiB, testIov(context, [512]));
  await blk.close();
  await checked(path);
  assert.deepEqual(await peerExtents(path, 'b'), [
    [0, 64 * KiB],
    [MiB, 64 * KiB],
  ]);
});

test('what cannot be is refused, and names the field; who only reads the disk goes on without bitmaps', async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const made = await open(path);
  for (const name of ['a', 'b'])
    (await made.root!.bitmaps.add(name, { persistent: true, granularity: 512 })).mark(0, 1);
  await made.write(0, testIov(context, [512], 7));
  await made.close();
  const good = readFileSync(path);
  const { directoryOffset: at } = bitmapsExtension(headerOf(path))!;
  const view = (bytes: Buffer): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const table = Number(view(good).getBigUint64(at));
  const data = view(good).getBigUint64(table);
  const bad: readonly [RegExp, (bytes: DataView) => void][] = [
    [/bitmap_table_size/, (bytes) => bytes.setUint32(at + 8, 2)],
    [/bitmap_table_offset/, (bytes) => bytes.setBigUint64(at, 512n)],
    [/beyond the end of the file/, (bytes) => bytes.setBigUint64(at, BigInt(GiB))],
    [/beyond the end of the file/, (bytes) => bytes.setBigUint64(table, BigInt(GiB))],
    [/bitmap table is invalid/, (bytes) => bytes.setBigUint64(table, 513n)],
    [/in use already/, (bytes) => bytes.setBigUint64(Number(bytes.getBigUint64(at + 32)), data)],
    [/in use already/, (bytes) => bytes.setBigUint64(table, BigInt(at))],
    [/name_size/, (bytes) => bytes.setUint16(at + 18, 0)],
    [/granularity_bits/, (bytes) => bytes.setUint8(at + 17, 8)],
  ];
  for (const [message, damage] of bad) {
    const bytes = Buffer.from(good);
    damage(view(bytes));
    writeFileSync(path, bytes);
    await assert.rejects(open(path), { code: 'EINVAL', message });
    const reading = await open(path, { 'read-only': true });
    const { bitmaps } = reading.root!;
    assert.deepEqual(bitmaps.list(), []);
    assert.throws(() => bitmaps.share('a'), { code: 'EINVAL', message });
    await assert.rejects(bitmaps.remove('b'), { code: 'EINVAL', message });
    const iov = testIov(context, [512]);
    await reading.read(0, iov);
    assert.deepEqual(iov.run(0), testIov(context, [512], 7).run(0), `${message}: the disk is there`);
    await reading.close();
    const { qcow2 } = await inspect(path);
    assert.deepEqual(qcow2!.bitmaps, []);
    assert.match(qcow2!.bitmapDamage!, message);
    assert.ok(readFileSync(path).equals(bytes), `${message}: nothing is written`);
  }
});

test('a bitmap over other metadata: the image is read, and nothing is written or marked', async (t) => {
  const path = await make(t, { size: 8 * MiB });
  const made = await open(path);
  await made.root!.bitmaps.add('b', { persistent: true });
  await made.write(0, testIov(context, [512], 7));
  await made.close();
  const bytes = readFileSync(path);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const header = headerOf(path);
  const l2 = view.getBigUint64(header.l1Offset) & 0x00ff_ffff_ffff_fe00n;
  const table = Number(view.getBigUint64(bitmapsExtension(header)!.directoryOffset));
  view.setBigUint64(table, l2);
  writeFileSync(path, bytes);
  const blk = await open(path);
  const iov = testIov(context, [512]);
  await blk.read(0, iov);
  assert.deepEqual(iov.run(0), testIov(context, [512], 7).run(0));
  await blk.close();
  assert.ok(readFileSync(path).equals(bytes), 'untouched');
  const again = await open(path);
  const { dirty } = again.root!.bitmaps.get('b');
  await assert.rejects(again.write(MiB, testIov(context, [512])), { code: 'EIO', message: /bitmap/ });
  assert.equal(again.root!.bitmaps.get('b').dirty, dirty, 'nothing was written, so nothing more is dirty');
  await again.close();
});
