import { after, before, describe, test } from 'node:test';
import { needs } from '../harness.ts';
import { FIXTURE } from './fixture.ts';
import { type Line, Parity } from './harness.ts';

/** Compares lines in groups, each group with files of its own. */
export function compareLines(groups: Readonly<Record<string, readonly Line[]>>): void {
  for (const [group, lines] of Object.entries(groups)) {
    describe(`qemu-img, ${group}: the same line does the same in both programs`, needs('qemu-img', 'qemu-io'), () => {
      let parity: Parity;
      before(async () => {
        parity = await Parity.of(FIXTURE);
      });
      after(() => parity[Symbol.dispose]());
      for (const line of lines) {
        test(typeof line === 'string' ? `'${line}'` : `'${line.line}' but for: ${line.differs}`, () =>
          parity.compare(line),
        );
      }
    });
  }
}
