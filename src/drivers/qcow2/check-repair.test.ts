import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { needs, peer, run } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { BlockBackend } from '../../block/backend.ts';
import { checkImage } from '../../block/control.ts';
import type { CheckFix, CheckResult } from '../../block/driver.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { bytesOf, registerTestDrivers, type TestDisk, testDisk, testIov } from '../../block/testing.ts';
import type { Qcow2Node } from './driver.ts';
import { makeImage, registerQcow2 } from './testing.ts';
import { DAMAGES, DamagedImage } from './testing-damage.ts';

const SIZE = 2 ** 20;
const CLUSTER = 4096;
const MEMORY: NodeOptions = { driver: 'memory', disk: 'image' };
const OPEN: NodeOptions = { driver: 'qcow2', file: MEMORY };

let context: AioContext;
let disk: TestDisk;
/** An image with data in each of its first 32 clusters, and two snapshots. */
let sound: Uint8Array;

before(async () => {
  context = new AioContext(new PoolBackend());
  registerTestDrivers();
  registerQcow2();
  disk = testDisk('image', 0);
  await makeImage(context, MEMORY, { size: SIZE, 'cluster-size': CLUSTER });
  const blk = await BlockBackend.open(context, OPEN);
  await blk.write(0, testIov(context, [32 * CLUSTER], 1));
  await controlled(blk, (node) => node.snapshots.create('one'));
  await blk.write(8 * CLUSTER, testIov(context, [CLUSTER], 2));
  await controlled(blk, (node) => node.snapshots.create('two'));
  await blk.close();
  sound = disk.bytes.slice();
});

after(() => context.stop());

async function controlled<T>(blk: BlockBackend, body: (node: Qcow2Node) => Promise<T>): Promise<T> {
  using _drained = await blk.drain();
  return await body(blk.root!.impl as Qcow2Node);
}

async function contents(options: NodeOptions = { ...OPEN, 'read-only': true }): Promise<Uint8Array> {
  const blk = await BlockBackend.open(context, options);
  const iov = testIov(context, [SIZE]);
  await blk.read(0, iov);
  await blk.close();
  return bytesOf(iov);
}

function check(fix: CheckFix, file: NodeOptions = MEMORY): Promise<CheckResult> {
  return checkImage(context, 'qcow2', { file }, fix);
}

/** The disk holds the sound image with some damage. */
function damage(edit: (image: DamagedImage) => void): void {
  disk.bytes = sound.slice();
  disk.script.length = 0;
  edit(new DamagedImage(disk.bytes));
}

function assertClean({ corruptions, leaks, checkErrors, messages }: CheckResult): void {
  assert.deepEqual({ corruptions, leaks, checkErrors }, { corruptions: 0, leaks: 0, checkErrors: 0 }, `${messages}`);
}

const BROKEN: Readonly<Record<string, (image: DamagedImage) => void>> = {
  'no refcount block': (image) => image.point(image.header.refcountTableOffset, 0),
  'a misaligned refcount block': (image) => image.flip(image.header.refcountTableOffset, { set: [10] }),
  'refcounts too low and too high': (image) => {
    for (let i = 0; i < 60; i++) image.setRefcount(i * CLUSTER, i % 4);
  },
  'too much extra data': (image) => {
    image.view.setUint32(60, 1);
    image.view.setUint32(image.header.snapshotsOffset + 36, 2000);
  },
  'COPIED flags': (image) => {
    for (let i = 0; i < 32; i++) image.flip(image.l2(i), i % 2 === 0 ? { set: [63] } : { clear: [63] });
  },
  'a misaligned place of zeroes': (image) => image.flip(image.l2(40), { set: [0, 10, 30, 63] }),
};

describe('a repair that ends at any of its writes can be done again', () => {
  for (const [name, edit] of Object.entries(BROKEN)) {
    test(name, async () => {
      damage(() => undefined);
      const before = await contents();
      for (let writes = 0; ; writes++) {
        damage(edit);
        for (let i = 0; i < writes; i++) disk.script.push({ op: 'write' });
        disk.script.push({ op: 'write', errno: Errno.EIO });
        const ended = await check('all').then(
          () => true,
          (error: unknown) => {
            assert.ok(error instanceof BlockError && error.errno === Errno.EIO);
            return false;
          },
        );
        disk.script.length = 0;
        assertClean(await check('all'));
        assertClean(await check('none'));
        assert.deepEqual(await contents(), before);
        if (ended) {
          assert.ok(writes > 0);
          return;
        }
      }
    });
  }
});

test('where something cannot be read, nothing is repaired', async () => {
  const edit = BROKEN['refcounts too low and too high']!;
  damage(edit);
  const damagedBytes = disk.bytes.slice();
  let unread = 0;
  for (let reads = 0; ; reads++) {
    disk.script.length = 0;
    for (let i = 0; i < reads; i++) disk.script.push({ op: 'read' });
    // Of clusters that were read together each is read again.
    for (let i = 0; i < 4; i++) disk.script.push({ op: 'read', errno: Errno.EIO });
    const result = await check('none').catch((error: unknown) => {
      assert.ok(error instanceof BlockError && error.errno === Errno.EIO);
    });
    if (result && result.checkErrors === 0) break;
    if (result) unread++;
    disk.script.length = 0;
    for (let i = 0; i < reads; i++) disk.script.push({ op: 'read' });
    for (let i = 0; i < 4; i++) disk.script.push({ op: 'read', errno: Errno.EIO });
    const repaired = await check('all').catch(() => undefined);
    assert.ok(repaired === undefined || repaired.checkErrors > 0);
    assert.deepEqual(disk.bytes, damagedBytes);
  }
  assert.ok(unread >= 4, `${unread} reads failed: refcounts, L1 table, snapshots, L2 tables`);
});

test("a repair of 'leaks' changes nothing where something else is needed first", async () => {
  damage(BROKEN['no refcount block']!);
  const damagedBytes = disk.bytes.slice();
  const { corruptions, messages } = await check('leaks');
  assert.ok(corruptions > 0);
  assert.match(messages[0]!, /^Nothing was repaired: the refcount table must be written anew/);
  assert.deepEqual(disk.bytes, damagedBytes);
});

test('there is a message for each problem, up to 1000', async () => {
  damage((image) => {
    for (let i = 0; i < 40; i++) image.setRefcount(i * CLUSTER, 7);
  });
  const { leaks, corruptions, messages } = await check('none');
  assert.equal(messages.length, leaks + corruptions);
  assert.ok(messages.includes('the cluster at 0x0 has refcount 7, and 1 references'));
  damage((image) => {
    for (let i = 0; i < 2000; i++) image.setRefcount(i * CLUSTER, 7);
    disk.bytes = new Uint8Array(2000 * CLUSTER);
    disk.bytes.set(image.bytes);
  });
  assert.equal((await check('none')).messages.length, 1000);
});

describe('the check of an open node', () => {
  test('repairs, and requests go on with what is right', async () => {
    damage((image) => {
      BROKEN['COPIED flags']!(image);
      image.setRefcount(SIZE, 3);
      image.view.setUint32(60, 3);
    });
    const before = await contents();
    const blk = await BlockBackend.open(context, OPEN);
    const written = testIov(context, [CLUSTER], 9);
    await blk.write(100 * CLUSTER, written);
    const found = await controlled(blk, (node) => node.check('none'));
    assert.ok(found.corruptions > 0);
    assertClean(await controlled(blk, (node) => node.check('all')));
    await controlled(blk, (node) => node.snapshots.create('after'));
    await blk.write(0, testIov(context, [4 * CLUSTER], 10));
    await blk.close();
    assertClean(await check('none'));
    before.set(bytesOf(testIov(context, [4 * CLUSTER], 10)));
    before.set(bytesOf(written), 100 * CLUSTER);
    assert.deepEqual(await contents(), before);
  });

  test('is the way back after damage was found in use', async () => {
    damage(() => undefined);
    const blk = await BlockBackend.open(context, OPEN);
    const { image } = blk.root!.impl as Qcow2Node;
    image.corrupted('this is a test', 0);
    const write = (): Promise<void> => blk.write(200 * CLUSTER, testIov(context, [CLUSTER], 3));
    await assert.rejects(write, /is corrupt: this is a test/);
    assertClean(await controlled(blk, (node) => node.check('all')));
    await write();
    await blk.close();
    assert.equal(new DamagedImage(disk.bytes).header.incompatible, 0);
    assertClean(await check('none'));
  });

  test('that is read-only refuses a repair', async () => {
    damage(BROKEN['COPIED flags']!);
    const blk = await BlockBackend.open(context, { ...OPEN, 'read-only': true });
    await assert.rejects(
      controlled(blk, (node) => node.check('leaks')),
      /Could not repair the image: it is open read-only/,
    );
    assert.equal((await controlled(blk, (node) => node.check('none'))).corruptions, 16);
    await blk.close();
  });

  test('is made when a dirty image is opened for writing', async () => {
    damage((image) => {
      BROKEN['refcounts too low and too high']!(image);
      image.flip(72, { set: [0] });
    });
    const before = await contents();
    await (await BlockBackend.open(context, OPEN)).close();
    assert.equal(new DamagedImage(disk.bytes).header.incompatible, 0);
    assertClean(await check('none'));
    assert.deepEqual(await contents(), before);
  });
});

describe('a hostile image takes no more time and memory than what is in it', () => {
  const folder = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  const path = join(folder, 'hostile.qcow2');
  after(() => rmSync(folder, { recursive: true, force: true }));
  const FILE: NodeOptions = { driver: 'file', filename: path };

  test('an L1 table with a million entries for one L2 table', async () => {
    const entries = 2 ** 20;
    writeFileSync(path, '');
    await makeImage(context, FILE, { size: 16 * SIZE, preallocation: 'metadata' });
    const image = new DamagedImage(readFileSync(path));
    const bytes = new Uint8Array(image.bytes.length + entries * 8);
    bytes.set(image.bytes);
    const hostile = new DamagedImage(bytes);
    const at = image.bytes.length;
    for (let i = 0; i < entries; i++) hostile.point(at + i * 8, image.place(image.l1()));
    hostile.view.setUint32(36, entries);
    hostile.point(40, at);
    writeFileSync(path, bytes);
    const { corruptions, allocatedClusters, messages } = await check('none', FILE);
    assert.equal(allocatedClusters, 256 * entries);
    assert.ok(corruptions > 0 && messages.length <= 1000);
  });

  test('clusters far apart in a file with nothing in between', async () => {
    writeFileSync(path, '');
    await makeImage(context, FILE, { size: 16 * SIZE, preallocation: 'metadata' });
    const image = new DamagedImage(readFileSync(path));
    const far = 2 ** 43;
    for (let i = 0; i < 256; i++) image.point(image.l2(i), (far / 256) * i + 2 ** 30, 63);
    writeFileSync(path, image.bytes);
    truncateSync(path, far);
    const { corruptions, imageEndOffset } = await check('none', FILE);
    assert.ok(corruptions >= 256 && imageEndOffset > far / 2);
  });

  test('snapshots with L1 tables of 4 GiB and more', async () => {
    damage((image) => {
      const count = 200;
      image.view.setUint32(60, count);
      disk.bytes = new Uint8Array(2 * SIZE + CLUSTER * count);
      disk.bytes.set(image.bytes.subarray(0, SIZE));
      const hostile = new DamagedImage(disk.bytes);
      hostile.point(64, 2 * SIZE - 2 ** 16);
      for (let i = 0; i < count; i++) {
        const entry = 2 * SIZE - 2 ** 16 + i * 56;
        hostile.point(entry, 2 * SIZE + i * CLUSTER);
        hostile.view.setUint32(entry + 8, 2 ** 22);
        hostile.view.setUint32(entry + 36, 16);
      }
    });
    await assert.rejects(check('none'), /its snapshots have \d+ bytes of L1 tables/);
  });
});

describe("a repair of 'leaks' does what that of qemu-img does", needs('qemu-img', 'qemu-io'), () => {
  const folder = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const names = ['a refcount of 2', 'a COPIED flag that is missing', 'data in the L1 table', 'data that is misaligned'];
  for (const name of names) {
    test(name, async () => {
      const [path, other] = [join(folder, 'ours.qcow2'), join(folder, 'theirs.qcow2')];
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '8M');
      await peer('qemu-io', '-c', 'write -P 1 0 300k', path);
      const image = new DamagedImage(readFileSync(path));
      DAMAGES.find((damage) => damage.name === name && damage.kind === 'plain')!.damage(image);
      writeFileSync(path, image.bytes);
      writeFileSync(other, image.bytes);
      const ours = await check('leaks', { driver: 'file', filename: path });
      assert.equal((await peerCheck(other, '-r', 'leaks')).leaksFixed, ours.leaksFixed);
      assert.deepEqual(await peerCheck(path), await peerCheck(other));
    });
  }

  test('with an encrypted image, whose key nobody needs', async () => {
    const path = join(folder, 'luks.qcow2');
    writeFileSync(path, '');
    const keys = { 'encrypt.format': 'luks', 'encrypt.key': 'abc', 'encrypt.iter-time': 10 } as const;
    await makeImage(context, { driver: 'file', filename: path }, { size: SIZE, ...keys });
    const image = new DamagedImage(readFileSync(path));
    assertClean(await check('none', { driver: 'file', filename: path }));
    image.setRefcount(image.header.l1Offset, 5);
    writeFileSync(path, image.bytes);
    assert.equal((await check('leaks', { driver: 'file', filename: path })).leaksFixed, 1);
    assertClean(await check('none', { driver: 'file', filename: path }));
  });
});

async function peerCheck(path: string, ...repair: string[]): Promise<Record<string, number>> {
  const { stdout } = await run('qemu-img', ['check', '--output=json', ...repair, path]);
  const json = JSON.parse(stdout) as { corruptions?: number; leaks?: number; 'leaks-fixed'?: number };
  return { corruptions: json.corruptions ?? 0, leaks: json.leaks ?? 0, leaksFixed: json['leaks-fixed'] ?? 0 };
}
