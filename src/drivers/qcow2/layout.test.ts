import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError, Errno } from '../../base/errors.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import { type ImageShape, imageLayout, refcountClusters } from './layout.ts';

test('refcount blocks and table count themselves, and are no more than that takes', () => {
  for (const clusterSize of [512, 4 * KiB, 64 * KiB, 2 * MiB]) {
    for (const bits of [1, 8, 16, 64]) {
      const perBlock = (clusterSize * 8) / bits;
      for (const clusters of [0, 1, perBlock - 2, perBlock - 1, perBlock, 70_000, 5_000_000]) {
        const { blocks, tableClusters } = refcountClusters(clusters, clusterSize, bits);
        const text = `${clusters} clusters of ${clusterSize}, ${bits} bits: ${blocks} and ${tableClusters}`;
        assert.equal(blocks, Math.ceil((clusters + blocks + tableClusters) / perBlock), text);
        assert.equal(tableClusters, Math.ceil((blocks * 8) / clusterSize), text);
        assert.ok((blocks - 1) * perBlock < clusters + blocks - 1 + tableClusters, text);
      }
    }
  }
  assert.deepEqual(refcountClusters(32 * KiB - 2, 64 * KiB, 16), { blocks: 1, tableClusters: 1 });
  assert.deepEqual(refcountClusters(32 * KiB - 1, 64 * KiB, 16), { blocks: 2, tableClusters: 1 });
});

const shape: ImageShape = {
  size: GiB,
  clusterSize: 64 * KiB,
  extendedL2: false,
  refcountBits: 16,
  keyBytes: 0,
  preallocated: false,
  externalData: false,
};

test('parts lie one behind the other, and an empty image has four clusters', () => {
  const empty = imageLayout(shape);
  assert.deepEqual([empty.clusters, empty.l1Size, empty.l1At], [4, 2, 3 * 64 * KiB]);
  const all = imageLayout({ ...shape, preallocated: true, keyBytes: 2 * MiB - 1, extendedL2: true });
  assert.equal(all.l2Tables, 4);
  assert.deepEqual(
    [all.tableAt, all.blocksAt, all.l1At, all.keysAt, all.l2At, all.dataAt, all.end].map((at) => at / (64 * KiB)),
    [1, 2, 3, 4, 36, 40, 40 + 16 * KiB],
  );
  const external = imageLayout({ ...shape, preallocated: true, externalData: true });
  assert.equal(external.end, external.dataAt);
});

test('a disk that tables cannot describe is refused', () => {
  const refused = (changed: Partial<ImageShape>, why: RegExp): void =>
    assert.throws(
      () => imageLayout({ ...shape, ...changed }),
      (error) => error instanceof BlockError && error.errno === Errno.EFBIG && why.test(error.message),
    );
  const largest = 128 * GiB;
  assert.equal(imageLayout({ ...shape, clusterSize: 512, size: largest }).l1Size, 4 * MiB);
  refused({ clusterSize: 512, size: largest + 512 }, /L1 table/);
  refused({ clusterSize: 512, size: 64 * GiB, refcountBits: 64, preallocated: true }, /refcount table/);
  refused({ clusterSize: 2 * MiB, size: 2 ** 53 - 512, preallocated: true, refcountBits: 1 }, /2\^53/);
});
