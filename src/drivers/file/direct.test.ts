import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before } from 'node:test';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { KiB } from '../../base/units.ts';
import { BlockBackend } from '../../block/backend.ts';
import { changeNodes } from '../../block/change.ts';
import type { BlockNode } from '../../block/node.ts';
import { registerDriver } from '../../block/registry.ts';
import { bytesOf, testIov } from '../../block/testing.ts';
import { rawDriver } from '../raw/driver.ts';
import { fileDriver } from './driver.ts';
import { canBeDirect, openFile as openFileOf } from './testing.ts';

let directory: string;
before(() => {
  registerDriver(fileDriver);
  registerDriver(rawDriver);
  directory = mkdtempSync(join(tmpdir(), 'blockplane-direct-'));
});
after(() => rmSync(directory, { recursive: true }));

function inDirect(title: string, body: (context: AioContext) => Promise<void>): void {
  inContext(title, async (context) => {
    // There is nothing to see where the temporary folder's file system has none.
    if (canBeDirect(directory)) await body(context);
  });
}

let files = 0;
function image(size: number): string {
  const path = join(directory, `image${files++}`);
  writeFileSync(path, new Uint8Array(size).fill(7));
  return path;
}

const openFile = (path: string) => openFileOf(process.pid, path);

/** The node's options as they were given, with another cache. */
function withCache(node: BlockNode, cache: object | undefined, more: object = {}) {
  const { cache: _before, ...rest } = node.common;
  return { node, options: { ...rest, ...more, ...(cache ? { cache } : {}) } as never };
}

function diskOf(context: AioContext, filename: string, more: object = {}): Promise<BlockBackend> {
  return BlockBackend.open(context, { driver: 'raw', file: { driver: 'file', filename }, ...more } as never, {
    allowWriteBeyondEnd: true,
  });
}

const fileOf = (blk: BlockBackend): BlockNode => blk.root!.children[0]!.node;

inDirect('a file becomes direct and buffered under load, with its locks and its bytes', async (context) => {
  const path = image(256 * KiB);
  const blk = await diskOf(context, path);
  const node = fileOf(blk);
  const before = openFile(path);
  assert.equal(before.direct, false);
  let ended = false;
  const lengths = [100, 4096, 3000, 1];
  const written = new Uint8Array(256 * KiB).fill(7);
  let writes = 0;
  const load = (async () => {
    for (; !ended; writes++) {
      const iov = testIov(context, [lengths[writes % lengths.length]!, 5], writes % 200);
      const at = (writes * 997) % (200 * KiB);
      await blk.write(at, iov);
      written.set(bytesOf(iov), at);
    }
  })();
  for (let i = 0; i < 6; i++) {
    const direct = i % 2 === 0;
    const until = writes + 20;
    await changeNodes([withCache(node, { direct })]);
    assert.deepEqual(openFile(path), { ...before, direct });
    assert.equal(node.limits.alignment > 1, direct);
    assert.equal(blk.limits.alignment, node.limits.alignment, 'the node above has other limits');
    assert.equal(node.impl.descriptor! >= 0, !direct, 'lent to other threads');
    while (writes < until) await blk.read(0, testIov(context, [1], 0));
  }
  ended = true;
  await load;
  const all = testIov(context, [256 * KiB], 0);
  await blk.read(0, all);
  assert.deepEqual(bytesOf(all), written);
  await blk.close();
  assert.deepEqual(new Uint8Array(readFileSync(path)), written);
});

inContext(
  'a file that ends within a block ends with it while it is direct, and as it did if undone',
  async (context) => {
    const path = image(1000);
    const other = image(1000);
    const blk = await diskOf(context, path);
    const second = await diskOf(context, other);
    const node = fileOf(blk);
    const lengths: number[] = [];
    blk.users.add({ onResize: (length) => lengths.push(length) });
    const direct = withCache(node, { direct: true });
    const cannot = { node: second.root!, options: { driver: 'raw', offset: 1, size: 2000 } as never };
    await assert.rejects(changeNodes([direct, cannot]), { code: 'EINVAL', message: /size 2000/ });
    assert.equal(openFile(path).direct, false);
    assert.deepEqual([statSync(path).size, blk.length, node.limits.alignment], [1000, 1000, 1]);
    assert.equal(node.common.cache, undefined);
    await changeNodes([direct]);
    const { alignment } = node.limits;
    assert.deepEqual([statSync(path).size, blk.length], [alignment * Math.ceil(1000 / alignment), lengths.at(-1)]);
    await blk.write(990, testIov(context, [20], 1));
    await changeNodes([withCache(node, undefined)]);
    assert.equal(openFile(path).direct, false);
    const tail = testIov(context, [10], 0);
    await blk.read(990, tail);
    assert.deepEqual(bytesOf(tail), bytesOf(testIov(context, [20], 1)).slice(0, 10));
    await blk.close();
    await second.close();
  },
);

inDirect('where the file system has no direct I/O it is one clear error, and all is as it was', async (context) => {
  const path = '/proc/version';
  const good = image(1000);
  const blk = await diskOf(context, good);
  const options = { driver: 'file', filename: path, 'read-only': true };
  const bad = await BlockBackend.open(context, options as never, { readOnly: true });
  const changes = [withCache(fileOf(blk), { direct: true }), withCache(bad.root!, { direct: true })];
  await assert.rejects(changeNodes(changes), {
    code: 'EINVAL',
    message: `Could not bypass the page cache for '${path}': its file system has no direct I/O`,
  });
  assert.deepEqual([openFile(good).direct, openFile(path).direct], [false, false]);
  assert.deepEqual([statSync(good).size, blk.length, bad.root!.limits.alignment], [1000, 1000, 1]);
  assert.equal(bad.root!.common.cache, undefined);
  await bad.close();
  await blk.close();
});

inDirect('cache goes down to a node that came with its parent and has none of its own', async (context) => {
  const path = image(4096);
  const blk = await diskOf(context, path);
  const [top, file] = [blk.root!, fileOf(blk)];
  const seen = (): unknown => [openFile(path).direct, file.noFlush, top.noFlush];
  await changeNodes([withCache(top, { direct: true })]);
  assert.deepEqual(seen(), [true, false, false]);
  // As of the peer: what is not said does not change below a child that is named, and does where it is options.
  await changeNodes([withCache(top, undefined, { file: file.name })]);
  assert.deepEqual(seen(), [true, false, false]);
  await changeNodes([withCache(top, undefined)]);
  assert.deepEqual(seen(), [false, false, false]);
  await changeNodes([withCache(top, { direct: false, 'no-flush': true })]);
  assert.deepEqual(seen(), [false, true, true]);
  const wrong = { node: top, options: { driver: 'raw', size: 5000 } as never };
  await assert.rejects(changeNodes([withCache(top, { direct: true }), wrong]), { code: 'EINVAL' });
  assert.deepEqual(seen(), [false, true, true]);
  await changeNodes([withCache(top, { direct: true }), withCache(file, { direct: false })]);
  assert.deepEqual(seen(), [false, false, false]);
  await changeNodes([withCache(top, { direct: true }, { file: file.name })]);
  assert.deepEqual(seen(), [false, false, false], 'it has one of its own by now');
  await changeNodes([withCache(top, { direct: true })]);
  assert.deepEqual(seen(), [true, false, false], 'its options are told again, and that is not among them');
  await blk.close();
});

inDirect('a file becomes writable and direct at once, and goes back', async (context) => {
  const path = image(1000);
  const options = { driver: 'raw', 'read-only': true, file: { driver: 'file', filename: path } };
  const blk = await BlockBackend.open(context, options as never, { readOnly: true });
  const file = fileOf(blk);
  for (const direct of [true, false]) {
    const change = { 'read-only': !direct, file: file.name };
    await changeNodes([withCache(blk.root!, { direct }, change)]);
    assert.deepEqual([openFile(path).direct, file.readOnly], [direct, !direct]);
  }
  assert.equal(statSync(path).size, 1000, 'nobody wrote');
  await blk.close();
});
