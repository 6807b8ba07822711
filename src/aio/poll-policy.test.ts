import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Gate } from './op.ts';
import {
  AdaptivePolling,
  MISSES_TO_REST,
  POLL_IDLE_NS,
  POLL_MAX_NS_DEFAULT,
  POLL_START_NS,
  REST_MAX,
} from './poll-policy.ts';
import { inContext } from './testing.ts';

test('P1 polling begins at 4 us, doubles, and ends at 65536 ns', () => {
  const polling = new AdaptivePolling();
  assert.equal(polling.maxNs, POLL_MAX_NS_DEFAULT);
  assert.equal(POLL_MAX_NS_DEFAULT, 65_536);
  const lengths = [polling.pollNs];
  for (let i = 0; i < 7; i++) {
    polling.adjust(polling.pollNs + 1);
    lengths.push(polling.pollNs);
  }
  assert.deepEqual(lengths, [0, POLL_START_NS, 8_000, 16_000, 32_000, 64_000, 65_536, 0]);
});

test('P1 a maximum of 0 turns polling off', () => {
  const polling = new AdaptivePolling({ pollMaxNs: 0 });
  for (const ns of [1, 100, 10_000, 1e9]) polling.adjust(ns);
  assert.equal(polling.pollNs, 0);
});

test('P1 grow and shrink factors are as given; shrink 0 means to nothing', () => {
  const polling = new AdaptivePolling({ pollMaxNs: 1_000_000, pollGrow: 3, pollShrink: 4 });
  polling.adjust(10);
  polling.adjust(5_000);
  assert.equal(polling.pollNs, 12_000);
  polling.adjust(2_000_000);
  assert.equal(polling.pollNs, 3_000);
  const toNothing = new AdaptivePolling();
  toNothing.adjust(10);
  toNothing.adjust(1_000_000);
  assert.equal(toNothing.pollNs, 0);
});

test('P2 a wait within the spin keeps it, one beyond the maximum shrinks it, one in between grows it', () => {
  const waits = fc.array(fc.integer({ min: 0, max: 100_000 }), { maxLength: 200 });
  fc.assert(
    fc.property(waits, fc.integer({ min: 1, max: 80_000 }), fc.integer({ min: 0, max: 4 }), (blocks, max, shrink) => {
      const polling = new AdaptivePolling({ pollMaxNs: max, pollShrink: shrink });
      for (const block of blocks) {
        const before = polling.pollNs;
        polling.adjust(block);
        if (block <= before) assert.equal(polling.pollNs, before);
        else if (block > max) assert.ok(polling.pollNs <= before);
        else assert.ok(polling.pollNs > before || before === max);
        assert.ok(polling.pollNs >= 0 && polling.pollNs <= max);
      }
    }),
  );
});

test('P3 after seven idle seconds polling stops, also when every wait was short enough to grow it', () => {
  const polling = new AdaptivePolling({ pollMaxNs: 1e9, pollShrink: 1 });
  for (let waited = 0; waited <= POLL_IDLE_NS; waited += 2e9) polling.adjust(2e9);
  assert.equal(polling.pollNs, 0);
});

inContext(
  'P4 spinning ends as soon as something is ready: a timer due long before the spin is over is not kept waiting',
  async (context, backend) => {
    if (backend === 'ring') context.polling.pollNs = 2_000_000_000;
    const start = context.now();
    const gate = new Gate();
    context.timer(() => gate.open(), 'soon').armIn(3_000_000);
    await gate.promise;
    assert.ok(context.now() - start < 1_500_000_000, 'the spin ran to its end');
  },
  { pollMaxNs: 2_000_000_000 },
);

test('spinning that misses again and again rests, for longer each time, and one hit ends that', () => {
  const polling = new AdaptivePolling();
  const restsFor = (): number => {
    let waits = 0;
    for (; polling.rests; waits++) polling.adjust(100);
    return waits;
  };
  for (let i = 1; i < MISSES_TO_REST; i++) {
    polling.spun(false);
    assert.equal(restsFor(), 0);
  }
  const lengths = [];
  for (let i = 0; i < 10; i++) {
    polling.spun(false);
    lengths.push(restsFor());
  }
  assert.deepEqual(lengths, [1, 2, 4, 8, 16, 32, 64, 128, REST_MAX, REST_MAX]);
  polling.spun(true);
  polling.spun(false);
  assert.equal(polling.rests, false);
});
