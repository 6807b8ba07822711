/** Devices over Node's streams: standard input and output, files and pipes. */
import { constants, createReadStream, createWriteStream, existsSync, fstatSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Chardev, CharFrontend, CharLink, CharListener } from './chardev.ts';
import type { Framing } from './framing.ts';

/** What one way in and one way out carry. */
export class StreamLink implements CharLink {
  readonly #input: Readable | undefined;
  readonly #output: Writable;
  readonly #framing: Framing | undefined;
  #listener: CharListener | undefined;

  constructor(input: Readable | undefined, output: Writable, framing?: Framing) {
    this.#input = input;
    this.#output = output;
    this.#framing = framing;
  }

  /** Begins, and says when it is over. */
  start(frontend: CharFrontend, ended: () => void): void {
    if (this.#framing?.opening) this.#write(this.#framing.opening);
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
    this.#input?.on('data', (bytes: Uint8Array) => this.#received(bytes, end));
    this.#input?.on('error', end);
    this.#input?.on('end', end);
    this.#input?.on('close', end);
  }

  send(text: string): void {
    this.#write(this.#framing ? this.#framing.encode(text) : text);
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

  #write(data: string | Uint8Array): void {
    if (this.#output.writable) this.#output.write(data);
  }

  #received(bytes: Uint8Array, end: () => void): void {
    const carried = this.#framing
      ? this.#framing.decode(
          bytes,
          (answer) => this.#write(answer),
          () => this.#output.end(end),
        )
      : bytes;
    if (carried.length > 0) this.#listener?.received(carried);
  }
}

interface Streams {
  readonly input: Readable | undefined;
  readonly output: Writable;
}

/** A device with one conversation, which is there from the beginning. */
export class StreamChardev implements Chardev {
  readonly filename: string;
  readonly #streams: Streams;
  /** Standard streams are the process's own. */
  readonly #owned: boolean;
  readonly #link: StreamLink;

  constructor(filename: string, owned: boolean, streams: Streams) {
    this.filename = filename;
    this.#owned = owned;
    this.#streams = streams;
    this.#link = new StreamLink(streams.input, streams.output);
    for (const stream of [streams.input, streams.output]) stream?.on('error', () => undefined);
  }

  attach(frontend: CharFrontend): void {
    this.#link.start(frontend, () => undefined);
  }

  close(): void {
    if (this.#owned) this.#link.cut();
    else this.#streams.input?.pause();
  }
}

export function stdioChardev(): Chardev {
  return new StreamChardev('stdio', false, { input: process.stdin, output: process.stdout });
}

export function fileChardev(out: string, input: string | undefined, append: boolean): Chardev {
  const outFd = opened(out, append ? 'a' : 'w');
  return new StreamChardev('file', true, {
    input: input === undefined ? undefined : readerOf(opened(input, 'r')),
    output: createWriteStream('', { fd: outFd }),
  });
}

/** PATH.in and PATH.out where there are both, else PATH for both ways. */
export function pipeChardev(path: string): Chardev {
  const pair = existsSync(`${path}.in`) && existsSync(`${path}.out`);
  // Open for both, so that nobody waits for the other end, and it may come and go.
  return new StreamChardev('pipe', true, {
    input: readerOf(opened(pair ? `${path}.in` : path, constants.O_RDWR)),
    output: writerOf(opened(pair ? `${path}.out` : path, constants.O_RDWR)),
  });
}

/** A file in the place of a serial line. */
export function plainChardev(filename: string, path: string): Chardev {
  return new StreamChardev(filename, true, {
    input: readerOf(opened(path, 'r')),
    output: writerOf(opened(path, 'r+')),
  });
}

function opened(path: string, flags: string | number): number {
  try {
    return openSync(path, flags, 0o666);
  } catch (error) {
    throw new QmpError(`Could not open '${path}': ${errnoText(errnoOf(error))}`);
  }
}

function readerOf(fd: number): Readable {
  return isPipe(fd) ? new Socket({ fd, readable: true, writable: false }) : createReadStream('', { fd });
}

function writerOf(fd: number): Writable {
  return isPipe(fd) ? new Socket({ fd, readable: false, writable: true }) : createWriteStream('', { fd });
}

function isPipe(fd: number): boolean {
  const stat = fstatSync(fd);
  return stat.isFIFO() || stat.isSocket();
}
