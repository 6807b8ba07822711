/** Devices over Node's streams: standard input and output, files and pipes. */
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import type { Chardev, CharFrontend, CharLink, CharListener } from './chardev.ts';

/** What one way in and one way out carry. */
export class StreamLink implements CharLink {
  readonly #input: Readable | undefined;
  readonly #output: Writable;
  #listener: CharListener | undefined;

  constructor(input: Readable | undefined, output: Writable) {
    this.#input = input;
    this.#output = output;
  }

  /** Begins, and says when it is over. */
  start(frontend: CharFrontend, ended: () => void): void {
    const listener = frontend.opened(this);
    this.#listener = listener;
    const end = (): void => {
      if (!this.#listener) return;
      this.#listener = undefined;
      listener.closed();
      ended();
    };
    this.#output.on('drain', () => this.#listener?.drained());
    this.#output.on('error', end);
    this.#output.on('close', end);
    this.#input?.on('data', (bytes: Uint8Array) => this.#listener?.received(bytes));
    this.#input?.on('error', end);
    this.#input?.on('end', end);
    this.#input?.on('close', end);
  }

  send(text: string): void {
    if (this.#output.writable) this.#output.write(text);
  }

  get unsent(): number {
    return this.#output.writableLength;
  }

  pause(): void {
    this.#input?.pause();
  }

  resume(): void {
    this.#input?.resume();
  }

  cut(): void {
    this.#input?.destroy();
    this.#output.destroy();
  }
}

/** A device with one conversation, which is there from the beginning. */
export class StreamChardev implements Chardev {
  readonly filename: string;
  readonly #open: () => { readonly input: Readable | undefined; readonly output: Writable };
  /** Standard streams are the process's own. */
  readonly #owned: boolean;
  #link: StreamLink | undefined;
  #attached = false;

  constructor(filename: string, owned: boolean, open: () => { input: Readable | undefined; output: Writable }) {
    this.filename = filename;
    this.#owned = owned;
    this.#open = open;
  }

  get frontendOpen(): boolean {
    return this.#attached;
  }

  attach(frontend: CharFrontend): void {
    this.#attached = true;
    const { input, output } = this.#open();
    this.#link = new StreamLink(input, output);
    this.#link.start(frontend, () => undefined);
  }

  close(): void {
    if (this.#owned) this.#link?.cut();
    else this.#link?.pause();
  }
}

export function stdioChardev(): Chardev {
  return new StreamChardev('stdio', false, () => ({ input: process.stdin, output: process.stdout }));
}

export function fileChardev(out: string, input: string | undefined, append: boolean): Chardev {
  return new StreamChardev('file', true, () => ({
    input: input === undefined ? undefined : createReadStream(input),
    output: createWriteStream(out, { flags: append ? 'a' : 'w', mode: 0o666 }),
  }));
}

/** PATH.in and PATH.out where there are both, else PATH for both ways. */
export function pipeChardev(path: string): Chardev {
  const pair = existsSync(`${path}.in`) && existsSync(`${path}.out`);
  return new StreamChardev('pipe', true, () => ({
    input: createReadStream(pair ? `${path}.in` : path),
    output: createWriteStream(pair ? `${path}.out` : path, { flags: 'r+' }),
  }));
}
