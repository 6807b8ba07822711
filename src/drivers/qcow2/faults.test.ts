/**
 * Whatever read, write, flush, hole or resize of the file fails: the guest is told, nothing is thrown that is not an
 * error of I/O, what comes later works or fails in good order, and the image has no corruption afterwards. Each
 * workload runs once for every operation there is, with that one failing.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs } from '../../../test/harness.ts';
import type { ScriptedFault } from '../../aio/sim/sim.ts';
import { Errno } from '../../base/errors.ts';
import { CrashRunner } from './testing-crash.ts';
import { aceSteps, type Plan } from './testing-crash-plans.ts';

const WORKLOADS = [
  // Writes of every sort, twice, so that there is something after the failure.
  { kind: 'v3 512', letters: 'pwxfdoCkfpw' },
  { kind: 'v3 512 snapshot', letters: 'oxfsodfrpf' },
  // Nothing comes after the failure that would mend what it left.
  { kind: 'v3 512 snapshot', letters: 'oxs' },
  { kind: 'v3 512 snapshot', letters: 'oxr' },
  { kind: 'v3 4k', letters: 'mxf' },
  { kind: 'v3 4k', letters: 'gxf' },
  { kind: 'v3 4k snapshot', letters: 'oafpbof' },
  { kind: 'lazy', letters: 'pwfdbof' },
  { kind: 'v3 4k', letters: 'wghpf' },
  { kind: 'refcount table', letters: 'wfwpf' },
  { kind: 'data file', letters: 'pdxfuof' },
  { kind: 'subclusters', letters: 'pzfudcf' },
] as const;
const FAULTS: readonly Omit<ScriptedFault, 'nth'>[] = [
  { op: 'write', errno: Errno.EIO, late: true },
  { op: 'write', errno: Errno.ENOSPC },
  { op: 'read', errno: Errno.EIO },
  { op: 'datasync', errno: Errno.EIO },
  { op: 'allocate', errno: Errno.EIO },
  { op: 'truncate', errno: Errno.ENOSPC },
];
/** More than this is a mistake in the test. */
const OPERATIONS_MAX = 500;

for (const { kind, letters } of WORKLOADS) {
  test(`every operation fails once: ${kind}, ${letters}`, { ...needs('qemu-img'), timeout: 110_000 }, async (t) => {
    const runner = new CrashRunner({ statesMax: 0, subsets: 0, processes: 1, sample: 10 });
    t.after(() => runner.end());
    const plan: Plan = aceSteps(kind, letters);
    let cases = 0;
    let told = 0;
    for (const fault of FAULTS) {
      for (let nth = 1; ; nth++) {
        assert.ok(nth < OPERATIONS_MAX, 'too many operations');
        const { came, errors } = await runner.fault(plan, { ...fault, nth });
        if (!came) break;
        cases++;
        if (errors.length > 0) told++;
        // A write or a flush that fails is somebody's; other operations may be of the background, or advice.
        const { op } = fault;
        if (op === 'write' || op === 'datasync') assert.ok(errors.length > 0, `${op} ${nth} fails and nobody is told`);
      }
    }
    t.diagnostic(`${cases} cases, the guest was told of ${told}, ${runner.totals.leaks} with leaks`);
    assert.ok(cases > 20);
  });
}
