/** How far a verb has come: `-p` shows it on one line, `--progress=json` in JSON lines, and SIGUSR1 asks at any time. */
import { Failure, Option, type Terminal, type VerbLine } from './verb.ts';

/** Percent between two lines. */
const STEP = 1;

type Form = 'none' | 'line' | 'json';

export class Progress implements Disposable {
  readonly #terminal: Terminal;
  readonly #form: Form;
  #current = 0;
  #total = 0;
  /** Percent that was told last. */
  #told = 0;
  readonly #asked = (): void => this.#terminal.err(`${this.#text}\n`);

  /** What the options of a verb that has {@link Option.progress} and {@link Option.progressForm} ask for. */
  static of(line: VerbLine, terminal: Terminal, misuseExit = 1): Progress {
    const form = line.value(Option.progressForm) ?? (line.has(Option.progress) ? 'line' : 'none');
    if (form !== 'none' && form !== 'line' && form !== 'json') {
      throw new Failure('--progress must be used with none, line or json as argument.', misuseExit);
    }
    return new Progress(terminal, line.has(Option.quiet) ? 'none' : form);
  }

  constructor(terminal: Terminal, form: Form = 'none') {
    this.#terminal = terminal;
    this.#form = form;
    this.#tell();
    // Always: what Node does of its own accord when it is asked is to let debuggers in.
    process.on('SIGUSR1', this.#asked);
  }

  readonly at = (current: number, total: number): void => {
    this.#current = current;
    this.#total = total;
    const percent = this.#percent;
    if (percent - this.#told >= STEP || (percent === 100 && this.#told < 100)) this.#tell();
  };

  /** All is done. */
  end(): void {
    const total = this.#total || 1;
    this.at(total, total);
  }

  get #percent(): number {
    return this.#total === 0 ? 0 : Math.min(100, (this.#current / this.#total) * 100);
  }

  get #text(): string {
    return `    (${this.#percent.toFixed(2)}/100%)`;
  }

  #tell(): void {
    this.#told = this.#percent;
    if (this.#form === 'line') this.#terminal.out(`${this.#text}\r`);
    const { current, total } = { current: this.#current, total: this.#total };
    if (this.#form === 'json') this.#terminal.out(`${JSON.stringify({ current, total })}\n`);
  }

  [Symbol.dispose](): void {
    if (this.#form === 'line') this.#terminal.out('\n');
    process.off('SIGUSR1', this.#asked);
  }
}
