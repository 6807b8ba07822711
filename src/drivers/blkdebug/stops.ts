/** Breakpoints of a blkdebug node, and the requests that they have stopped. */
import { Gate } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Breakpoints, DEBUG_EVENTS, type DebugEvent } from '../../block/driver.ts';

interface Breakpoint {
  readonly event: DebugEvent;
  readonly tag: string;
  readonly told: (what: 'stopped' | 'going on', tag: string) => void;
}

interface Stopped extends Breakpoint {
  readonly gate: Gate;
}

export class Stops implements Breakpoints {
  #set: Breakpoint[] = [];
  readonly #stopped: Stopped[] = [];
  /** Opens when another request is stopped. */
  #next = new Gate();

  set(event: string, tag: string, told: Breakpoint['told']): void {
    const known = DEBUG_EVENTS.find((one) => one === event);
    if (known === undefined) throw absent(`Could not set a breakpoint: there is no event '${event}'`);
    this.#set.push({ event: known, tag, told });
  }

  remove(tag: string): void {
    const left = this.#set.filter((one) => one.tag !== tag);
    const found = left.length < this.#set.length;
    this.#set = left;
    for (const one of this.#stopped.filter((stopped) => stopped.tag === tag)) this.#goOn(one);
    if (!found) throw absent(`Could not remove breakpoint '${tag}': there is none`);
  }

  resume(tag: string): void {
    const last = this.#stopped.findLast((one) => one.tag === tag);
    if (!last) throw absent(`Could not resume a request: none is stopped at '${tag}'`);
    this.#goOn(last);
  }

  resumeAll(): void {
    this.#set = [];
    for (const one of [...this.#stopped]) this.#goOn(one);
  }

  async stopped(tag: string): Promise<void> {
    while (!this.#stopped.some((one) => one.tag === tag)) await this.#next.promise;
  }

  /** A promise where the request is stopped, until it goes on. */
  reach(event: DebugEvent): Promise<void> | undefined {
    if (this.#set.length === 0) return undefined;
    // The one that was set last comes first.
    const found = this.#set.findLast((one) => one.event === event);
    if (!found) return undefined;
    this.#set = this.#set.filter((one) => one !== found);
    const stopped = { ...found, gate: new Gate() };
    this.#stopped.push(stopped);
    found.told('stopped', found.tag);
    const seen = this.#next;
    this.#next = new Gate();
    seen.open();
    return stopped.gate.promise;
  }

  #goOn(one: Stopped): void {
    this.#stopped.splice(this.#stopped.indexOf(one), 1);
    one.told('going on', one.tag);
    one.gate.open();
  }
}

function absent(message: string): BlockError {
  return new BlockError(Errno.ENOENT, message);
}
