/** What goes on while `serve` runs: a live line for people, or a JSON line a second for programs. */
import type { JobProgress } from '../lib/job-messages.ts';
import type { NbdStats } from '../lib/messages.ts';
import type { NbdService } from '../lib/nbd.ts';
import { sizeText } from './report.ts';

const PERIOD_MS = 1000;
const CLEAR_LINE = '\r\x1b[K';

export type ProgressMode = 'none' | 'line' | 'json';

export function sumStats(all: readonly NbdStats[]): NbdStats {
  const sum = (pick: (stats: NbdStats) => number): number => all.reduce((total, stats) => total + pick(stats), 0);
  return {
    clients: sum((stats) => stats.clients),
    connections: sum((stats) => stats.connections),
    requests: sum((stats) => stats.requests),
    errors: sum((stats) => stats.errors),
    bytesIn: sum((stats) => stats.bytesIn),
    bytesOut: sum((stats) => stats.bytesOut),
  };
}

export class Progress {
  readonly #services: readonly NbdService[];
  readonly #mode: ProgressMode;
  readonly #prefetched: ReadonlyMap<unknown, JobProgress>;
  #timer: NodeJS.Timeout | undefined;
  #last: NbdStats | undefined;
  #lastTime = 0;
  #busy = false;

  /** `prefetched`: how far that has come, for each disk that it is done for. */
  constructor(services: readonly NbdService[], mode: ProgressMode, prefetched: ReadonlyMap<unknown, JobProgress>) {
    this.#services = services;
    this.#mode = mode;
    this.#prefetched = prefetched;
  }

  start(): void {
    if (this.#mode === 'none') return;
    this.#timer = setInterval(() => void this.#tick(), PERIOD_MS).unref();
    void this.#tick();
  }

  /** Prints the last state; for JSON, with `done`. */
  async stop(): Promise<void> {
    if (!this.#timer) return;
    this.cancel();
    if (this.#mode === 'json') this.#print(await this.#read(), true);
  }

  /** Prints no more, and clears the live line. Idempotent. */
  cancel(): void {
    if (!this.#timer) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    if (this.#mode === 'line') process.stderr.write(CLEAR_LINE);
  }

  async #read(): Promise<NbdStats> {
    return sumStats(await Promise.all(this.#services.map((service) => service.stats())));
  }

  async #tick(): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    try {
      const stats = await this.#read();
      if (this.#timer) this.#print(stats, false);
    } catch {
      // The thread is on its way out: whoever waits for it says why.
    } finally {
      this.#busy = false;
    }
  }

  /** Bytes that are local, and in all; nothing where nothing is prefetched. */
  #prefetch(): { readonly prefetched?: number; readonly prefetchTotal?: number } {
    const all = [...this.#prefetched.values()];
    if (all.length === 0) return {};
    const sum = (pick: (progress: JobProgress) => number): number => all.reduce((total, one) => total + pick(one), 0);
    return { prefetched: sum(({ current }) => current), prefetchTotal: sum(({ total }) => total) };
  }

  #print(stats: NbdStats, done: boolean): void {
    const now = performance.now();
    const seconds = (now - this.#lastTime) / 1000;
    const rate = (pick: (from: NbdStats) => number): number =>
      this.#last && seconds > 0 ? (pick(stats) - pick(this.#last)) / seconds : 0;
    const requests = Math.round(rate((from) => from.requests));
    const bytes = Math.round(rate((from) => from.bytesIn + from.bytesOut));
    this.#last = stats;
    this.#lastTime = now;
    const prefetch = this.#prefetch();
    if (this.#mode === 'json') {
      const line = {
        ...stats,
        requestsPerSecond: requests,
        bytesPerSecond: bytes,
        ...prefetch,
        ...(done ? { done } : {}),
      };
      process.stdout.write(`${JSON.stringify(line)}\n`);
    } else {
      const clients = `${stats.clients} client${stats.clients === 1 ? '' : 's'}`;
      const { prefetched, prefetchTotal } = prefetch;
      const local = prefetchTotal === undefined ? '' : `  ${sizeText(prefetched!)} of ${sizeText(prefetchTotal)} local`;
      process.stderr.write(`${CLEAR_LINE}${clients}  ${requests} requests/s  ${sizeText(bytes)}/s${local}`);
    }
  }
}
