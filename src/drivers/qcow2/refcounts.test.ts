import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB } from '../../base/units.ts';
import { registerQcow2 } from './testing.ts';
import { type CrashFormat, Guest, prepare } from './testing-crash-work.ts';

test('a cluster that is being discarded in the file is given to one write only, and not before the end', async () => {
  registerQcow2();
  const size = 64 * KiB;
  const format: CrashFormat = {
    name: 'discards',
    create: { size, 'cluster-size': 4 * KiB },
    regions: [{ at: 0, length: size }],
  };
  const prepared = await prepare(format, [{ do: 'write', at: 0, length: 16 * KiB }]);
  const guest = new Guest(format, prepared, 1, 1000);
  await guest.open();
  await guest.perform([{ do: 'discard', at: 0, length: 16 * KiB }, { do: 'flush' }]);
  const { entries } = guest.journal;
  await guest.sim.run(() => entries.some(({ change, ended }) => change?.kind === 'zero' && ended === Infinity));
  // The first allocation since the image was opened looks for free clusters from the beginning of the file.
  await guest.perform([{ do: 'write', at: 32 * KiB, length: 16 * KiB }]);
  await guest.sim.run(() => entries.every(({ ended }) => ended < Infinity));
  await guest.perform([{ do: 'write', at: 48 * KiB, length: 16 * KiB }]);
  assert.deepEqual((await guest.read()).values, guest.model.current);
  await guest.close();
});
