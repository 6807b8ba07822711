import assert from 'node:assert/strict';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { KiB } from '../../base/units.ts';
import { ByteBudget, LIFELINE } from './budget.ts';
import { BudgetShare } from './share.ts';

/** Somebody with a queue of requests for memory, each of which gets one block. */
class Client {
  readonly share: BudgetShare;
  readonly got: number[] = [];
  wanted = 0;
  readonly #length: number;

  constructor(budget: ByteBudget, limit: number, length: number) {
    this.share = new BudgetShare(budget, limit, () => this.go());
    this.#length = length;
  }

  want(count: number): void {
    this.wanted += count;
    this.go();
  }

  go(): void {
    while (this.wanted > 0 && !this.share.waiting) {
      const at = this.share.allocate(this.#length);
      if (at < 0) return;
      this.wanted--;
      this.got.push(at);
    }
  }

  giveBack(): void {
    this.share.free(this.got.shift()!, this.#length);
  }
}

const SIZE = 1024 * KiB;
const BLOCK = 256 * KiB;

function budgetOf(context: AioContext, lifelines = 0): ByteBudget {
  return new ByteBudget(context, SIZE, lifelines);
}

inContext('blocks are distinct, page-aligned and inside the memory, and all come back', (context) => {
  const budget = budgetOf(context);
  const seen = new Set<number>();
  for (let i = 0; i < SIZE / (4 * KiB); i++) {
    const at = budget.allocate(4000);
    assert.ok(at >= 0 && at % 4096 === 0 && at + 4096 <= SIZE && !seen.has(at));
    seen.add(at);
  }
  assert.equal(budget.allocate(1), -1);
  assert.equal(budget.inUse, SIZE);
  for (const at of seen) budget.free(at, 4000);
  assert.equal(budget.inUse, 0);
  // Small blocks that were kept at hand are merged when a large one is wanted.
  assert.equal(budget.allocate(SIZE), 0);
  budget.free(0, SIZE);
  budget.close();
});

inContext('a client with a deep queue does not keep its place at the head: others get every other block', (context) => {
  const budget = budgetOf(context);
  const greedy = new Client(budget, SIZE, BLOCK);
  const modest = new Client(budget, SIZE, BLOCK);
  greedy.want(100);
  assert.equal(greedy.got.length, 4);
  modest.want(3);
  assert.equal(modest.got.length, 0);
  for (let i = 0; i < 6; i++) greedy.giveBack();
  assert.equal(modest.got.length, 3);
  budget.close();
});

inContext('nobody passes one who waits for more than there is', (context) => {
  const budget = budgetOf(context);
  const small = new Client(budget, SIZE, BLOCK);
  const large = new Client(budget, SIZE, SIZE);
  small.want(2);
  large.want(1);
  small.want(1);
  assert.deepEqual([small.got.length, large.got.length], [2, 0]);
  small.giveBack();
  assert.deepEqual([small.got.length, large.got.length], [1, 0]);
  small.giveBack();
  assert.deepEqual([small.got.length, large.got.length], [0, 1]);
  large.giveBack();
  assert.equal(small.got.length, 1);
  budget.close();
});

inContext('a client has its share at most, and goes on as its own memory comes back', (context) => {
  const budget = budgetOf(context);
  const client = new Client(budget, 2 * BLOCK, BLOCK);
  client.want(5);
  assert.equal(client.got.length, 2);
  assert.ok(budget.allocate(BLOCK) >= 0, 'others are not kept waiting by it');
  client.giveBack();
  assert.equal(client.got.length, 2);
  assert.equal(client.wanted, 2);
  budget.close();
});

inContext(
  'with the budget used up a client still has its lifeline, and resting memory leaves it alone',
  async (context) => {
    const budget = budgetOf(context, 2);
    const hog = new Client(budget, SIZE, SIZE);
    hog.want(1);
    const client = new Client(budget, SIZE, LIFELINE);
    client.want(2);
    assert.equal(client.got.length, 1);
    const at = client.got[0]!;
    assert.ok(at >= SIZE);
    budget.memory.bytes.fill(7, at, at + LIFELINE);
    hog.giveBack();
    client.giveBack();
    client.giveBack();
    assert.equal(budget.inUse, 0);
    // The rest timer looks twice before it gives memory back.
    await new Promise((resolve) => setTimeout(resolve, 2300));
    assert.ok(budget.memory.bytes.subarray(at, at + LIFELINE).every((byte) => byte === 7));
    budget.close();
  },
);
