import assert from 'node:assert/strict';
import { before } from 'node:test';
import { inContext } from '../../aio/testing.ts';
import { BlockBackend } from '../../block/backend.ts';
import { registerDriver } from '../../block/registry.ts';
import { BlockStatus } from '../../block/status.ts';
import { registerTestDrivers, settle, testDisk, testIov } from '../../block/testing.ts';
import { rawDriver } from '../raw/driver.ts';
import { blkdebugDriver } from './driver.ts';

const SIZE = 65_536;

before(() => {
  registerTestDrivers();
  registerDriver(rawDriver);
  registerDriver(blkdebugDriver);
});

function tree(options: object, above = 'raw'): never {
  testDisk('disk', SIZE);
  const filter = { driver: 'blkdebug', image: { driver: 'memory', disk: 'disk' }, discard: 'unmap', ...options };
  return (above === 'raw' ? { driver: 'raw', discard: 'unmap', file: filter } : filter) as never;
}

inContext('requests fail by the rules for them, and by no others', async (context) => {
  const rules = [
    { event: 'read_aio', iotype: 'read', errno: 28, sector: 1 },
    { event: 'flush_to_disk', iotype: 'flush', once: true },
  ];
  const blk = await BlockBackend.open(context, tree({ 'inject-error': rules }));
  await blk.read(0, testIov(context, [512]));
  await assert.rejects(blk.read(0, testIov(context, [513])), { code: 'ENOSPC' });
  await blk.write(0, testIov(context, [1024], 1));
  await assert.rejects(blk.flush(), { code: 'EIO' });
  await blk.flush();
  await blk.close();
  for (const [iotype, request] of [
    ['write', (disk: BlockBackend) => disk.write(0, testIov(context, [512], 1))],
    ['write-zeroes', (disk: BlockBackend) => disk.writeZeroes(0, 512)],
    ['discard', (disk: BlockBackend) => disk.discard(0, 512)],
    ['block-status', async (disk: BlockBackend) => disk.blockStatus(0, 512, new BlockStatus())],
  ] as const) {
    const disk = await BlockBackend.open(context, tree({ 'inject-error': [{ event: 'none', iotype }] }));
    await disk.read(0, testIov(context, [512]));
    await assert.rejects(request(disk), { code: 'EIO' }, iotype);
    await disk.close();
  }
});

inContext('a request stops at a breakpoint until it is let go on', async (context) => {
  const blk = await BlockBackend.open(context, tree({}, 'none'));
  const { breakpoints } = blk.root!.impl;
  const told: string[] = [];
  const tell = (what: string, tag: string): void => {
    told.push(`${what} ${tag}`);
  };
  assert.throws(() => breakpoints!.set('foo', 'A', tell), { code: 'ENOENT' });
  breakpoints!.set('pwritev', 'A', tell);
  let written = false;
  const writing = blk.write(0, testIov(context, [512], 1)).then(() => {
    written = true;
  });
  await breakpoints!.stopped('A');
  // Another one is not held up: the breakpoint was for one.
  await blk.write(4096, testIov(context, [512], 1));
  await settle();
  assert.equal(written, false);
  assert.throws(() => breakpoints!.resume('B'), { code: 'ENOENT' });
  breakpoints!.resume('A');
  await writing;
  assert.deepEqual(told, ['stopped A', 'going on A']);
  assert.throws(() => breakpoints!.remove('A'), { code: 'ENOENT' });
  breakpoints!.set('pwritev', 'A', tell);
  breakpoints!.remove('A');
  await blk.write(0, testIov(context, [512], 1));
  await blk.close();
});

inContext('requests below are as long and as aligned as it says', async (context) => {
  const limits = { align: 512, 'max-transfer': 1024, 'opt-write-zero': 1024, 'max-write-zero': 2048 };
  const blk = await BlockBackend.open(context, tree({ ...limits, 'opt-discard': 1024, 'max-discard': 4096 }, 'none'));
  const disk = testDisk('disk', SIZE);
  await blk.close();
  const again = await BlockBackend.open(context, {
    ...{ driver: 'blkdebug', image: { driver: 'memory', disk: 'disk' }, discard: 'unmap', ...limits },
    ...{ 'opt-discard': 1024, 'max-discard': 4096 },
  } as never);
  await again.read(100, testIov(context, [2000]));
  assert.deepEqual(disk.log.splice(0), ['read 0+1024', 'read 1024+1024', 'read 2048+512']);
  await again.writeZeroes(512, 4096);
  assert.deepEqual(disk.log.splice(0), [
    'write 512+512',
    'zero 1024+2048 flags 0',
    'zero 3072+1024 flags 0',
    'write 4096+512',
  ]);
  await again.discard(512, 8192);
  assert.deepEqual(disk.log.splice(0), ['discard 1024+4096', 'discard 5120+3072']);
  await again.close();
});

inContext('permissions that it takes, and those that it does not share', async (context) => {
  testDisk('disk', SIZE);
  const image = await BlockBackend.open(
    context,
    { driver: 'memory', disk: 'disk', 'node-name': 'image' } as never,
    {
      perm: 0,
      shared: 15,
    } as never,
  );
  const filter = (options: object): Promise<BlockBackend> =>
    BlockBackend.open(context, { driver: 'blkdebug', image: 'image', 'read-only': true, ...options } as never);
  const alone = await filter({ 'unshare-child-perms': ['write'] });
  await assert.rejects(filter({ 'take-child-perms': ['write'] }), { code: 'EPERM' });
  await alone.close();
  await (await filter({ 'take-child-perms': ['write'] })).close();
  await image.close();
});

inContext('what cannot be is refused, by its name', async (context) => {
  for (const [options, message] of [
    [{ align: 3 }, /Cannot meet constraints with align 3/],
    [{ align: 4096, 'max-transfer': 512 }, /with max-transfer 512/],
    [{ 'inject-error': [{ event: 'foo' }] }, /'inject-error.0.event' is 'foo', not one of the 48/],
    [{ 'inject-error': [{}] }, /'inject-error.0.event' is missing/],
    [{ 'inject-error': [{ event: 'none', foo: 1 }] }, /unknown option 'inject-error.0.foo'/],
    [{ 'inject-error': { event: 'none' } }, /not a list/],
    [{ 'inject-error': [{ event: 'none', errno: -1 }] }, /'errno' of a rule/],
    [{ 'set-state': [{ event: 'none', new_state: 1.5 }] }, /'new_state' of a rule/],
    [{ 'take-child-perms': ['foo'] }, /'take-child-perms.0' is 'foo'/],
    [{ config: '/nosuch' }, /Could not read blkdebug config file '\/nosuch': No such file/],
    [{ image: undefined }, /option 'image' is missing/],
  ] as const) {
    await assert.rejects(BlockBackend.open(context, tree(options)), { message });
  }
});
