/** For tests of many options at once: rows of settings that have every two settings that go together, somewhere. */
import { Prng } from '../../base/prng.ts';

/** How many rows are made up for each pair; the one with the most that is new is taken. */
const TRIES = 40;

function pairsOf(row: readonly number[]): string[] {
  return row.flatMap((a, i) => row.slice(0, i).map((b, j) => `${i}.${a} ${j}.${b}`));
}

/** A row with the given settings in two dimensions, the others by chance, but as few as make it possible. */
function rowWith(
  prng: Prng,
  counts: readonly number[],
  fixed: ReadonlyMap<number, number>,
  possible: (row: readonly number[]) => boolean,
): number[] | undefined {
  const row = counts.map((count, dimension) => fixed.get(dimension) ?? prng.below(count));
  const others = [...row.keys()].filter((dimension) => !fixed.has(dimension));
  while (!possible(row)) {
    if (others.length === 0) return undefined;
    row[others.splice(prng.below(others.length), 1)[0]!] = 0;
  }
  return row;
}

/** Dimension `i` has `counts[i]` settings; setting 0 is the one that goes with most others. Always the same rows. */
export function coveringRows(counts: readonly number[], possible: (row: readonly number[]) => boolean): number[][] {
  const prng = new Prng(1);
  const open = new Set<string>();
  for (let i = 0; i < counts.length; i++) {
    for (let j = 0; j < i; j++) {
      for (let a = 0; a < counts[i]!; a++) for (let b = 0; b < counts[j]!; b++) open.add(`${i}.${a} ${j}.${b}`);
    }
  }
  const rows: number[][] = [];
  for (const pair of open) {
    const settings = pair.split(' ').map((text) => text.split('.').map(Number) as [number, number]);
    let best: { row: number[]; pairs: string[] } | undefined;
    for (let i = 0; i < TRIES; i++) {
      const row = rowWith(prng, counts, new Map(settings), possible);
      const pairs = row ? pairsOf(row).filter((one) => open.has(one)) : [];
      if (row && pairs.length > (best?.pairs.length ?? 0)) best = { row, pairs };
    }
    open.delete(pair);
    if (!best) continue;
    for (const done of best.pairs) open.delete(done);
    rows.push(best.row);
  }
  return rows;
}
