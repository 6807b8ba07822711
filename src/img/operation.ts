import { Gate } from '../aio/op.ts';
import type { Bytes } from '../base/units.ts';

/** How far an operation has come: in bytes of the disk that have been looked at, mostly. */
export interface Progress {
  readonly current: Bytes;
  readonly total: Bytes;
}

/**
 * Work under way: a promise of its result, and its progress for whoever iterates over it. It goes on whether anybody
 * does or not; who iterates slowly misses steps, and sees the last one.
 *
 * ```ts
 * const copy = convert('disk.qcow2', 'disk.raw');
 * for await (const { current, total } of copy) console.log(current / total);
 * await copy;
 * ```
 */
export class Operation<T> implements Promise<T>, AsyncIterable<Progress> {
  readonly [Symbol.toStringTag] = 'Operation';
  readonly #outcome: Promise<T>;
  #latest: Progress | undefined;
  #ended = false;
  #news = new Gate();

  /** @internal `run` is given whom to tell of progress. */
  constructor(run: (tell: (progress: Progress) => void) => Promise<T>) {
    this.#outcome = this.#run(run);
  }

  // biome-ignore lint/suspicious/noThenProperty: it is there to be awaited
  then<R = T, E = never>(
    fulfilled?: ((value: T) => R | PromiseLike<R>) | null,
    rejected?: ((reason: unknown) => E | PromiseLike<E>) | null,
  ): Promise<R | E> {
    return this.#outcome.then(fulfilled, rejected);
  }

  catch<E = never>(rejected?: ((reason: unknown) => E | PromiseLike<E>) | null): Promise<T | E> {
    return this.#outcome.catch(rejected);
  }

  finally(after?: (() => void) | null): Promise<T> {
    return this.#outcome.finally(after);
  }

  /** Ends with the operation; throws what it failed with. To leave the loop early does not end it: its signal does. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Progress, void, undefined> {
    // Whoever iterates is told of a failure here.
    this.#outcome.catch(() => undefined);
    let seen: Progress | undefined;
    for (;;) {
      if (this.#latest !== undefined && this.#latest !== seen) {
        seen = this.#latest;
        yield seen;
      } else if (this.#ended) {
        await this.#outcome;
        return;
      } else {
        await this.#news.promise;
      }
    }
  }

  async #run(run: (tell: (progress: Progress) => void) => Promise<T>): Promise<T> {
    try {
      return await run((progress) => {
        this.#latest = progress;
        this.#tell();
      });
    } finally {
      this.#ended = true;
      this.#tell();
    }
  }

  #tell(): void {
    const told = this.#news;
    this.#news = new Gate();
    told.open();
  }
}
