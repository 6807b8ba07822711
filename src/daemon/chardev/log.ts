/** `logfile` of a device: a copy of all that goes out over it. */
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { CharFrontend, CharLink } from './chardev.ts';

export class CharLog {
  readonly #fd: number;

  constructor(path: string, append: boolean) {
    // Where the log is a pipe, nobody is to wait for its reader.
    const { O_WRONLY, O_CREAT, O_NONBLOCK, O_APPEND, O_TRUNC } = constants;
    try {
      this.#fd = openSync(path, O_WRONLY | O_CREAT | O_NONBLOCK | (append ? O_APPEND : O_TRUNC), 0o666);
    } catch (error) {
      throw new QmpError(`Could not create '${path}': ${errnoText(errnoOf(error))}`);
    }
  }

  /** `frontend`, with what it sends written down. */
  of(frontend: CharFrontend): CharFrontend {
    return { opened: (link) => frontend.opened(new LoggedLink(link, (text) => this.#write(text))) };
  }

  close(): void {
    closeSync(this.#fd);
  }

  #write(text: string): void {
    try {
      writeSync(this.#fd, text);
    } catch {
      // A monitor goes on without its log.
    }
  }
}

class LoggedLink implements CharLink {
  readonly #link: CharLink;
  readonly #write: (text: string) => void;

  constructor(link: CharLink, write: (text: string) => void) {
    this.#link = link;
    this.#write = write;
  }

  get unsent(): number {
    return this.#link.unsent;
  }

  send(text: string): void {
    this.#write(text);
    this.#link.send(text);
  }

  pause(): void {
    this.#link.pause();
  }

  resume(): void {
    this.#link.resume();
  }

  cut(): void {
    this.#link.cut();
  }
}
