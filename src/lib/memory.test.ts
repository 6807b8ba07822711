import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../base/units.ts';
import { Arena, ArenaShare } from './memory.ts';

test('who finds no room waits in turn, also behind somebody who wants more than there is', async () => {
  const arena = new Arena(MiB);
  const [one, two, three] = [new ArenaShare(), new ArenaShare(), new ArenaShare()];
  const first = await arena.acquire(one, MiB / 2);
  const order: string[] = [];
  const large = Promise.resolve(arena.acquire(two, MiB)).then((at) => {
    order.push('large');
    arena.release(two, at);
  });
  const small = Promise.resolve(arena.acquire(three, 4096)).then((at) => {
    order.push('small');
    arena.release(three, at);
  });
  arena.release(one, first);
  await Promise.all([large, small]);
  assert.deepEqual(order, ['large', 'small']);
  assert.equal(arena.used, 0);
});

test('a disk whose requests do not end leaves room for the others, and they for more', async () => {
  const arena = new Arena(32 * MiB);
  const stuck = Array.from({ length: 4 }, () => new ArenaShare());
  const ends = stuck.map((share) => Array.from({ length: 64 }, () => arena.acquire(share, MiB)));
  assert.deepEqual(
    stuck.map(({ held }) => held / MiB),
    [16, 8, 4, 2],
  );
  const other = new ArenaShare();
  for (let i = 0; i < 100; i++) arena.release(other, await arena.acquire(other, MiB));
  assert.equal(other.held, 0);
  for (const [i, share] of stuck.entries()) {
    for (const end of ends[i]!) arena.release(share, await end);
    assert.equal(share.held, 0);
  }
  assert.equal(arena.used, 0);
});

test('a thousand requests never hold more than the whole, and all come through', async () => {
  const arena = new Arena(MiB);
  const shares = Array.from({ length: 3 }, () => new ArenaShare());
  let held = 0;
  const use = async (share: ArenaShare, bytes: number): Promise<void> => {
    const at = await arena.acquire(share, bytes);
    held += bytes;
    assert.ok(held <= MiB);
    await null;
    held -= bytes;
    arena.release(share, at);
  };
  await Promise.all(Array.from({ length: 1000 }, (_, i) => use(shares[i % 3]!, 1 + ((i * 7919) % (MiB / 2)))));
  assert.equal(arena.used, 0);
  assert.ok(shares.every((share) => share.held === 0 && share.waiting.length === 0));
});
