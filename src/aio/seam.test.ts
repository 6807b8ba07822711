/** Runs the seam's conformance suite on every backend there is; BLOCKPLANE_AIO=ring|pool leaves out the other. */
import { test } from 'node:test';
import { PoolBackend } from './pool/backend.ts';
import { seamConformance } from './seam.conformance.ts';
import { whyNoRing } from './select.ts';
import { Sim } from './sim/sim.ts';

const only = process.env.BLOCKPLANE_AIO;

let seed = 1;
seamConformance('sim', () => {
  const sim = new Sim(seed++);
  sim.driveItself();
  return sim.backend('main');
});

if (only !== 'ring') seamConformance('pool', () => new PoolBackend());

if (only !== 'pool') {
  const reason = await whyNoRing();
  if (reason === undefined) {
    const { RingBackend } = await import('./ring/backend.ts');
    seamConformance('ring', () => new RingBackend());
  } else {
    test('ring', { skip: `no io_uring: ${reason}` }, () => undefined);
  }
}
