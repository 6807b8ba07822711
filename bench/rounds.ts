/** Loads given to servers in turn, and what is said of the samples. */
import { cpuSeconds, figure, markdownTable, median } from './common.ts';
import { type FioResult, fio, type Load } from './fio.ts';
import type { Server } from './peers.ts';

export type Sample = FioResult & { readonly cpuSeconds: number; readonly iosPerCpuSecond: number };
/** Load's name -> contestant's name -> one sample a round. */
export type Samples = Map<string, Map<string, Sample[]>>;

export async function measure(server: Server, load: Load, seconds: number): Promise<Sample> {
  const before = cpuSeconds(server.pid);
  const result = await fio(server.uri, load, { seconds });
  const spent = cpuSeconds(server.pid) - before;
  return { ...result, cpuSeconds: spent, iosPerCpuSecond: result.operations / Math.max(spent, 0.01) };
}

export function medianOf(samples: readonly Sample[], field: keyof Sample): number {
  return median(samples.map((sample) => sample[field]));
}

/** One table a load group: a row for each load and contestant, with the ratio of the first contestant to that row. */
export function report(samples: Samples, first: string): string {
  const rows: string[][] = [];
  for (const [load, byName] of samples) {
    const own = byName.get(first);
    for (const [name, list] of byName) {
      const ratio = (field: keyof Sample) =>
        own && name !== first ? (medianOf(own, field) / medianOf(list, field)).toFixed(2) : '';
      const cells = (['iops', 'mibPerSecond', 'p50Us', 'p99Us', 'iosPerCpuSecond'] as const).map((field) =>
        figure(medianOf(list, field)),
      );
      rows.push([load, name, ...cells, ratio('iops'), ratio('p99Us'), ratio('iosPerCpuSecond')]);
    }
  }
  const ratios = ['IOPS', 'p99', 'IO/CPU s'].map((what) => `${first}: ${what} x`);
  return markdownTable(['load', 'server', 'IOPS', 'MiB/s', 'p50 us', 'p99 us', 'IO per CPU s', ...ratios], rows);
}

export interface Bar {
  readonly load: string;
  readonly against: string;
  /** Our IOPS by theirs, at least. */
  readonly ratio: number;
}

/** One line for each bar that was measured. Figures of a busy or small machine vary: never a failure. */
export function verdicts(samples: Samples, bars: readonly Bar[]): string[] {
  return bars.flatMap(({ load, against, ratio }) => {
    const own = samples.get(load)?.get('ours');
    const other = samples.get(load)?.get(against);
    if (!own?.length || !other?.length) return [];
    const got = medianOf(own, 'iops') / medianOf(other, 'iops');
    const verdict = got >= ratio ? 'held' : 'missed';
    return [`bar: ${load}: ours by ${against} at least ${ratio.toFixed(1)}: ${got.toFixed(2)}: ${verdict}`];
  });
}

export async function rounds(servers: readonly Server[], loads: readonly Load[], count: number, seconds: number) {
  const samples: Samples = new Map(
    loads.map((load) => [load.name, new Map(servers.map((server) => [server.contestant.name, []]))]),
  );
  // Every server sees every load once before it counts: compilers and caches are then warm for all of them.
  for (const server of servers) for (const load of loads) await fio(server.uri, load, { seconds: seconds / 4 });
  for (let round = 0; round < count; round += 1) {
    for (const load of loads) {
      for (let turn = 0; turn < servers.length; turn += 1) {
        const server = servers[(turn + round) % servers.length]!;
        const sample = await measure(server, load, seconds);
        samples.get(load.name)!.get(server.contestant.name)!.push(sample);
      }
      process.stderr.write(`\rround ${round + 1} of ${count}: ${load.name}`.padEnd(60));
    }
  }
  process.stderr.write('\n');
  return samples;
}

export function json(machine: string, samples: Samples, memory: readonly (readonly string[])[]): string {
  const loads = Object.fromEntries([...samples].map(([load, byName]) => [load, Object.fromEntries(byName)]));
  return `${JSON.stringify({ machine, memory, loads }, undefined, 1)}\n`;
}
