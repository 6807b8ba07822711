import { after, before, describe, test } from 'node:test';
import { needs } from '../harness.ts';
import { FIXTURE } from './fixture.ts';
import { type Line, Parity } from './harness.ts';
import { CREATE_LINES } from './lines-create.ts';
import { INFO_LINES, USAGE_LINES } from './lines-usage.ts';

const GROUPS: Readonly<Record<string, readonly Line[]>> = {
  'bad usage': USAGE_LINES,
  info: INFO_LINES,
  create: CREATE_LINES,
};

describe('qemu-img: the same line does the same in both programs', needs('qemu-img', 'qemu-io'), () => {
  let parity: Parity;
  before(async () => {
    parity = await Parity.of(FIXTURE);
  });
  after(() => parity[Symbol.dispose]());
  for (const [group, lines] of Object.entries(GROUPS)) {
    describe(group, () => {
      for (const line of lines) {
        test(typeof line === 'string' ? `'${line}'` : `'${line.line}' but for: ${line.differs}`, () =>
          parity.compare(line),
        );
      }
    });
  }
});
