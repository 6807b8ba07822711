/**
 * Terminals: pseudo-terminals, whose other end anybody may open, and serial lines. What comes is read by Node, through
 * a duplicate of the descriptor, which goes with its reader; what goes out is written here, because Node would wait for
 * whoever does not read: its descriptor does not block, and what does not fit is offered again a little later.
 */
import { fstatSync, symlinkSync, unlinkSync, writeSync } from 'node:fs';
import { isatty, ReadStream } from 'node:tty';
import { errnoOf, errnoText } from '../../base/errors.ts';
import {
  claimParallelPort,
  hungUp,
  makeRaw,
  openDevice,
  openPseudoTerminal,
  type PseudoTerminal,
  setBreak,
} from '../../native/char-device.ts';
import { close, duplicate } from '../../native/file.ts';
import { QmpError } from '../../qmp/errors.ts';
import { type Chardev, type CharFrontend, type CharLink, type CharListener, SinkChardev } from './chardev.ts';
import { plainChardev } from './stream.ts';

/** A terminal holds 4 KiB: at this pace a reader that keeps up gets 1 MiB/s. */
const RETRY_MS = 4;
/** How long one who opens a pseudo-terminal waits for a greeting at most. */
const LOOK_MS = 100;
const BREAK_MS = 250;

/** Whoever has the other end of a terminal open. */
class TerminalLink implements CharLink {
  readonly #fd: number;
  /** The duplicate, and its reader. */
  readonly #own: number;
  readonly #rdev: number;
  readonly #input: ReadStream;
  readonly #output: Uint8Array[] = [];
  #unsent = 0;
  #retry: NodeJS.Timeout | undefined;
  #listener: CharListener | undefined;

  constructor(fd: number) {
    this.#fd = fd;
    this.#own = duplicate(fd);
    if (this.#own < 0) throw new QmpError(`Could not duplicate a terminal's descriptor: ${errnoText(-this.#own)}`);
    this.#rdev = fstatSync(fd).rdev;
    this.#input = new ReadStream(this.#own);
    this.#input.once('close', () => this.#closed());
  }

  start(frontend: CharFrontend, ended: () => void): void {
    const listener = frontend.opened(this);
    this.#listener = listener;
    const end = (): void => {
      if (!this.#listener) return;
      this.#listener = undefined;
      this.#drop();
      listener.closed();
      ended();
    };
    this.#input.on('data', (bytes: Uint8Array) => this.#listener?.received(bytes));
    this.#input.on('error', end);
    this.#input.on('end', () => this.#input.destroy());
    this.#input.on('close', end);
  }

  get unsent(): number {
    return this.#unsent;
  }

  send(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.#output.push(bytes);
    this.#unsent += bytes.length;
    if (!this.#retry) this.#flush();
  }

  pause(): void {
    this.#input.pause();
  }

  resume(): void {
    this.#input.resume();
  }

  cut(): void {
    this.#drop();
    this.#input.destroy();
  }

  #flush(): void {
    const waited = this.#retry !== undefined;
    this.#retry = undefined;
    try {
      for (let next = this.#output[0]; next; next = this.#output[0]) {
        const written = writeSync(this.#fd, next);
        this.#unsent -= written;
        if (written === next.length) this.#output.shift();
        else this.#output[0] = next.subarray(written);
      }
      if (waited) this.#listener?.drained();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') this.#retry = setTimeout(() => this.#flush(), RETRY_MS);
      else this.cut();
    }
  }

  /** Of a serial line, the reader has opened another one and left the duplicate to us. */
  #closed(): void {
    try {
      if (fstatSync(this.#own).rdev === this.#rdev) close(this.#own);
    } catch {
      // It is closed.
    }
  }

  #drop(): void {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#output.length = 0;
    this.#unsent = 0;
  }
}

export class PtyChardev implements Chardev {
  readonly filename: string;
  readonly pty: string;
  readonly #terminal: PseudoTerminal;
  /** Another name of it. */
  readonly #alias: string | undefined;
  #frontend: CharFrontend | undefined;
  #link: TerminalLink | undefined;
  #look: NodeJS.Timeout | undefined;

  /** `alias`: a symbolic link to it. Throws QmpError. */
  constructor(alias: string | undefined) {
    const terminal = openPseudoTerminal();
    if (typeof terminal === 'number') throw new QmpError(`Failed to create PTY: ${errnoText(-terminal)}`);
    this.#terminal = terminal;
    this.#alias = alias;
    this.pty = terminal.path;
    this.filename = `pty:${terminal.path}`;
    try {
      if (alias !== undefined) symlinkSync(terminal.path, alias);
    } catch (error) {
      close(terminal.fd);
      throw new QmpError(`Failed to create PTY symlink '${alias}': ${errnoText(errnoOf(error))}`);
    }
  }

  attach(frontend: CharFrontend): void {
    this.#frontend = frontend;
    this.#look = setInterval(() => this.#begin(), LOOK_MS);
  }

  close(): void {
    clearInterval(this.#look);
    this.#link?.cut();
    close(this.#terminal.fd);
    try {
      if (this.#alias !== undefined) unlinkSync(this.#alias);
    } catch {
      // Somebody else has removed it.
    }
  }

  #begin(): void {
    if (this.#link || !this.#frontend || hungUp(this.#terminal.fd)) return;
    this.#link = new TerminalLink(this.#terminal.fd);
    this.#link.start(this.#frontend, () => {
      this.#link = undefined;
    });
  }
}

class SerialChardev implements Chardev {
  readonly filename = 'serial';
  readonly #fd: number;
  #link: TerminalLink | undefined;
  #break: NodeJS.Timeout | undefined;

  constructor(fd: number) {
    this.#fd = fd;
  }

  attach(frontend: CharFrontend): void {
    this.#link = new TerminalLink(this.#fd);
    this.#link.start(frontend, () => undefined);
  }

  sendBreak(): void {
    clearTimeout(this.#break);
    setBreak(this.#fd, true);
    this.#break = setTimeout(() => setBreak(this.#fd, false), BREAK_MS);
  }

  close(): void {
    clearTimeout(this.#break);
    this.#link?.cut();
    close(this.#fd);
  }
}

/** A serial line, or a file in its place. */
export function serialChardev(path: string): Chardev {
  const fd = deviceAt(path);
  if (!isatty(fd)) {
    close(fd);
    return plainChardev('serial', path);
  }
  makeRaw(fd);
  return new SerialChardev(fd);
}

/** A parallel port, which has nothing to do with a monitor: bytes go nowhere. */
export function parallelChardev(path: string): Chardev {
  const fd = deviceAt(path);
  const result = claimParallelPort(fd);
  if (result >= 0) return new SinkChardev('parallel', undefined, () => void close(fd));
  close(fd);
  throw new QmpError(`not a parallel port: ${errnoText(-result)}`);
}

function deviceAt(path: string): number {
  const fd = openDevice(path);
  if (fd >= 0) return fd;
  throw new QmpError(`Could not open '${path}': ${errnoText(-fd)}`);
}
