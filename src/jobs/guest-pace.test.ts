/** How long jobs rest, from what guests do while they work and while they rest. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GuestPace } from './guest-pace.ts';

/** A guest that does `alone` requests a millisecond, and keeps `kept` of them while the job works: what it loses. */
function lossOf(alone: number, kept: number, pace = new GuestPace()): number {
  let [worked, rested] = [0, 0];
  for (let slice = 0; slice < 2000; slice++) {
    const { factor } = pace;
    pace.worked(4e6, 4 * alone * kept);
    pace.rested(4e6 * factor, 4 * factor * alone);
    // What was before it knew is left out.
    if (slice < 200) continue;
    worked += 4;
    rested += 4 * factor;
  }
  return (worked * (1 - kept)) / (worked + rested);
}

test('a guest loses a tenth to the work of a job, however hard that hits it', () => {
  for (const kept of [0.2, 0.5, 0.8]) assert.ok(Math.abs(lossOf(25, kept) - 0.1) < 0.005, `${kept}`);
  // Of one that gets nothing at all the 33rd part of the time is left to the job; of none the job takes all but a rest.
  assert.ok(lossOf(25, 0) <= 0.1 + 1e-9);
  const free = new GuestPace();
  lossOf(25, 1, free);
  assert.equal(free.factor, 0.25);
});

test('a job goes by what guests do now, and rests long until it knows', () => {
  const pace = new GuestPace();
  assert.equal(pace.factor, 8);
  lossOf(25, 1, pace);
  assert.ok(Math.abs(lossOf(5, 0.5, pace) - 0.1) < 0.005);
  // A pause of the job is no work of it.
  const { factor } = pace;
  pace.worked(3600e9, 0);
  assert.equal(pace.factor, factor);
  // A guest that does nothing while the job rests says nothing.
  const idle = new GuestPace();
  for (let i = 0; i < 10; i++) {
    idle.worked(4e6, 10);
    idle.rested(32e6, 0);
  }
  assert.equal(idle.factor, 8);
});
