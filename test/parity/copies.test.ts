import { BENCH_LINES, COMMIT_LINES, COMPARE_LINES, CONVERT_LINES, DD_LINES, REBASE_LINES } from './lines-copy.ts';
import { paritySuite } from './suite.ts';

paritySuite({
  convert: CONVERT_LINES,
  compare: COMPARE_LINES,
  dd: DD_LINES,
  rebase: REBASE_LINES,
  commit: COMMIT_LINES,
  bench: BENCH_LINES,
});
