/** A reporter of node's test runner: each test that failed, by file and name, with the beginning of why. */
import { relative } from 'node:path';

/** What a failed test says of why: this many characters at most. */
const REASON_MAX = 600;

export default async function* failures(events) {
  for await (const { type, data } of events) {
    if (type !== 'test:fail') continue;
    const { error } = data.details;
    // The failures of its subtests are there already.
    if (error.failureType === 'subtestsFailed') continue;
    const why = error.cause?.stack ?? error.cause?.message ?? error.cause ?? error.message;
    const file = data.file ? relative('dist', data.file) : '';
    yield `${file}: ${data.name}\n  ${String(why).slice(0, REASON_MAX).replaceAll('\n', '\n  ')}\n`;
  }
}
