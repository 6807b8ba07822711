/** Parts of one request that run at the same time: a bounded number, all waited for, the first error kept. */
export class Joiner {
  readonly #max: number;
  readonly #running = new Set<Promise<void>>();
  #error: unknown;
  #failed = false;

  constructor(max = 8) {
    this.#max = max;
  }

  /** True once a part has failed: no more need be started. */
  get failed(): boolean {
    return this.#failed;
  }

  /** Takes in a part that has been started; waits while too many run. */
  async add(part: Promise<void>): Promise<void> {
    const run = part
      .catch((error: unknown) => {
        if (!this.#failed) this.#error = error;
        this.#failed = true;
      })
      .finally(() => {
        this.#running.delete(run);
      });
    this.#running.add(run);
    while (this.#running.size >= this.#max) await Promise.race(this.#running);
  }

  /** Waits for all that has been started, whatever comes of it. */
  async settle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  /** Waits for all; throws what failed first. */
  async join(): Promise<void> {
    await this.settle();
    if (this.#failed) throw this.#error;
  }
}
