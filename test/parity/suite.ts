/** A file of the parity suite. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { needs, projectFile } from '../harness.ts';
import { FIXTURE } from './fixture.ts';
import { type Line, Parity } from './harness.ts';

/** Under load a line takes a tenth of a second, and there are hundreds. */
const TIMEOUT_MS = 600_000;

/** Runs the lines, by group. `spawned`: ours as a process of its own, as those who use it start it. */
export function paritySuite(
  groups: Readonly<Record<string, readonly Line[]>>,
  spawned = false,
  program = 'qemu-img',
): void {
  describe(`${program}: a line does the same in both programs`, {
    ...needs('qemu-img', 'qemu-io', 'python3'),
    timeout: TIMEOUT_MS,
  }, () => {
    let parity: Parity;
    before(async () => {
      parity = await Parity.of(FIXTURE, program);
    });
    after(() => parity?.[Symbol.dispose]());
    for (const [group, lines] of Object.entries(groups)) {
      describe(group, () => {
        for (const line of lines) test(titleOf(line), () => parity.compare(line, spawned));
      });
    }
  });

  test('every difference is in docs/COMPATIBILITY.md', () => {
    const headings = readFileSync(projectFile('docs/COMPATIBILITY.md'), 'utf8').match(/^#+ .*$/gm) ?? [];
    const named = new Set(
      Object.values(groups).flatMap((lines) => lines.flatMap((one) => (typeof one === 'string' ? [] : [one.differs]))),
    );
    const missing = [...named].filter((name) => !headings.some((heading) => heading.replace(/^#+ /, '') === name));
    assert.deepEqual(missing, []);
  });
}

function titleOf(line: Line): string {
  return typeof line === 'string' ? `'${line}'` : `'${line.line}' but for: ${line.differs}`;
}
