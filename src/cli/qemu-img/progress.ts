/** `-p`: how far it has come, on one line; without, SIGUSR1 asks. */
import type { Terminal } from './verb.ts';

/** Percent between two lines. */
const STEP = 1;

export class Progress implements Disposable {
  readonly #terminal: Terminal;
  readonly #shown: boolean;
  #percent = 0;
  #last = 0;
  readonly #asked = (): void => this.#terminal.err(`${this.#text}\n`);

  constructor(terminal: Terminal, shown: boolean) {
    this.#terminal = terminal;
    this.#shown = shown;
    if (shown) this.#print();
    else process.on('SIGUSR1', this.#asked);
  }

  readonly at = (current: number, total: number): void => {
    this.#percent = total === 0 ? 100 : Math.min(100, (current / total) * 100);
    if (this.#shown && (this.#percent - this.#last >= STEP || (this.#percent === 100 && this.#last < 100)))
      this.#print();
  };

  /** All is done. */
  end(): void {
    this.at(1, 1);
  }

  get #text(): string {
    return `    (${this.#percent.toFixed(2)}/100%)`;
  }

  #print(): void {
    this.#last = this.#percent;
    this.#terminal.out(`${this.#text}\r`);
  }

  [Symbol.dispose](): void {
    if (this.#shown) this.#terminal.out('\n');
    process.off('SIGUSR1', this.#asked);
  }
}
