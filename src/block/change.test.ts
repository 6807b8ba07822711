import assert from 'node:assert/strict';
import { before } from 'node:test';
import { inContext } from '../aio/testing.ts';
import { MiB } from '../base/units.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { BlockBackend } from './backend.ts';
import { changeNodes } from './change.ts';
import { type NodeOptions, openNode, releaseNode } from './graph.ts';
import { allNodes, nodeByName, registerDriver } from './registry.ts';
import { bytesOf, registerTestDrivers, testDisk, testIov } from './testing.ts';

before(() => {
  registerTestDrivers();
  registerDriver(rawDriver);
});

const over = (name: string, file: unknown): NodeOptions => ({ driver: 'raw', 'node-name': name, file }) as NodeOptions;

inContext(
  'a child that nobody else has comes back, open, where a later change fails; else it closes',
  async (context) => {
    for (const name of ['first', 'second']) testDisk(name, MiB).bytes.fill(name.length);
    const blk = await BlockBackend.open(context, over('a', { driver: 'memory', disk: 'first', 'node-name': 'file' }));
    const other = await openNode(context, { driver: 'memory', disk: 'second', 'node-name': 'other' });
    const b = await openNode(context, over('b', 'other'));
    const changes = ['other', 'nosuch'].map((file, i) => ({ node: [blk.root!, b][i]!, options: over('ab'[i]!, file) }));
    await assert.rejects(changeNodes(changes), { code: 'ENOENT' });
    assert.equal(blk.root!.children[0]!.node, nodeByName('file'));
    assert.equal(nodeByName('file').closed, false);
    const iov = testIov(context, [512]);
    await blk.read(0, iov);
    assert.ok(bytesOf(iov).every((byte) => byte === 'first'.length));
    await changeNodes(changes.slice(0, 1));
    await blk.read(0, iov);
    assert.ok(bytesOf(iov).every((byte) => byte === 'second'.length));
    assert.deepEqual(
      allNodes()
        .map(({ name }) => name)
        .sort(),
      ['a', 'b', 'other'],
    );
    await blk.close();
    for (const node of [b, other]) await releaseNode(node);
  },
);
