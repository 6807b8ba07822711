import { BENCH_LINES, COMMIT_LINES, COMPARE_LINES, CONVERT_LINES, DD_LINES, REBASE_LINES } from './lines-copy.ts';
import { compareLines } from './suite.ts';

compareLines({
  'converting from and to': CONVERT_LINES.slice(0, 70),
  'converting with options': CONVERT_LINES.slice(70),
  compare: COMPARE_LINES,
  dd: DD_LINES,
  rebase: REBASE_LINES,
  commit: COMMIT_LINES,
  bench: BENCH_LINES,
});
