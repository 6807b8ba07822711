/** A reporter of node's test runner: what each file's tests took together, the longest first. */
import { relative } from 'node:path';

export default async function* fileTimes(events) {
  const times = new Map();
  for await (const { type, data } of events) {
    if ((type !== 'test:pass' && type !== 'test:fail') || data.nesting > 0 || !data.file) continue;
    times.set(data.file, (times.get(data.file) ?? 0) + data.details.duration_ms);
  }
  const longest = [...times].sort(([, a], [, b]) => b - a);
  for (const [file, ms] of longest) yield `${relative('dist', file)} ${(ms / 1000).toFixed(1)} s\n`;
}
