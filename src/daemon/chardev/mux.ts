/**
 * One device for several users. All of them send, one is listened to: the first that came, until Ctrl-A C gives the
 * word to the next. What else Ctrl-A does, Ctrl-A H says.
 */
import type { Chardev, CharFrontend, CharLink, CharListener } from './chardev.ts';

const ESCAPE = 1;
const NEWLINE = 10;

const KEYS: readonly (readonly [key: string, what: string])[] = [
  ['h', 'print this help'],
  ['x', 'end the daemon'],
  ['s', 'nothing: there are no snapshots to save'],
  ['t', 'times before lines, on and off'],
  ['b', 'send a break'],
  ['c', 'the next user is listened to'],
  ['C-a', 'Ctrl-A itself'],
];
const HELP = `\n\r${KEYS.map(([key, what]) => `C-a ${key.padEnd(5)}${what}\n\r`).join('')}`;

export class MuxChardev implements Chardev, CharFrontend {
  readonly filename = 'mux';
  readonly frontendsMax = 4;
  readonly #onEnd: () => void;
  readonly #users: MuxUser[] = [];
  #focus = 0;
  #link: CharLink | undefined;
  #escaped = false;
  /** Milliseconds of the first line with a time before it; 0 before there is one, undefined without times. */
  #since: number | undefined;
  #lineBegins = false;

  /** `onEnd`: somebody wants the daemon to end. */
  constructor(onEnd: () => void) {
    this.#onEnd = onEnd;
  }

  attach(frontend: CharFrontend): void {
    const user = new MuxUser(frontend, (text) => this.#send(text));
    this.#users.push(user);
    if (this.#link) user.open(this.#link);
    this.#listen();
  }

  opened(link: CharLink): CharListener {
    this.#link = link;
    for (const user of this.#users) user.open(link);
    this.#listen();
    return {
      received: (bytes) => this.#received(bytes),
      drained: () => {
        for (const { listener } of this.#users) listener?.drained();
      },
      closed: () => {
        this.#link = undefined;
        this.#escaped = false;
        for (const user of this.#users) user.close();
      },
    };
  }

  close(): void {}

  /** Only the one who has the word may keep others from speaking. */
  #listen(): void {
    for (const [i, user] of this.#users.entries()) user.listen(i === this.#focus);
  }

  #received(bytes: Uint8Array): void {
    let begin = 0;
    for (const [i, byte] of bytes.entries()) {
      if (this.#escaped) {
        this.#escaped = false;
        this.#command(String.fromCharCode(byte));
        begin = i + 1;
        // Ctrl-A itself is passed on.
        if (byte === ESCAPE) begin = i;
      } else if (byte === ESCAPE) {
        this.#pass(bytes.subarray(begin, i));
        this.#escaped = true;
        begin = i + 1;
      }
    }
    this.#pass(bytes.subarray(begin));
  }

  #pass(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#users[this.#focus]?.listener?.received(bytes);
  }

  #command(key: string): void {
    switch (key) {
      case 'h':
      case '?':
        this.#link?.send(HELP);
        return;
      case 'x':
        this.#link?.send('blockplane: Terminated\n\r');
        this.#onEnd();
        return;
      case 't':
        this.#since = this.#since === undefined ? 0 : undefined;
        this.#lineBegins = false;
        return;
      case 'c':
        this.#focus = (this.#focus + 1) % Math.max(this.#users.length, 1);
        this.#listen();
        return;
      default:
      // Nothing else does anything for a monitor.
    }
  }

  #send(text: string): void {
    this.#link?.send(this.#since === undefined ? text : this.#timed(text));
  }

  #timed(text: string): string {
    const lines = text.split('\n').map((line, i, all) => {
      const begins = i > 0 || this.#lineBegins;
      return begins && (line !== '' || i < all.length - 1) ? this.#time() + line : line;
    });
    this.#lineBegins = text.charCodeAt(text.length - 1) === NEWLINE;
    return lines.join('\n');
  }

  /** `[hh:mm:ss.mmm] ` since the first of them. */
  #time(): string {
    this.#since ||= Date.now();
    const ms = Date.now() - this.#since;
    const clock = new Date(ms).toISOString().slice(14, -1);
    return `[${String(Math.floor(ms / 3_600_000)).padStart(2, '0')}:${clock}] `;
  }
}

/** One of the users, and what it thinks it has. */
class MuxUser implements CharLink {
  listener: CharListener | undefined;
  readonly #frontend: CharFrontend;
  readonly #send: (text: string) => void;
  #base: CharLink | undefined;
  #paused = false;
  #heard = false;

  constructor(frontend: CharFrontend, send: (text: string) => void) {
    this.#frontend = frontend;
    this.#send = send;
  }

  open(base: CharLink): void {
    this.#base = base;
    this.#paused = false;
    this.listener = this.#frontend.opened(this);
  }

  close(): void {
    this.#base = undefined;
    this.listener?.closed();
    this.listener = undefined;
  }

  /** It is the one that is listened to, or is not. */
  listen(heard: boolean): void {
    this.#heard = heard;
    if (!heard) return;
    if (this.#paused) this.#base?.pause();
    else this.#base?.resume();
  }

  send(text: string): void {
    this.#send(text);
  }

  get unsent(): number {
    return this.#base?.unsent ?? 0;
  }

  pause(): void {
    this.#paused = true;
    if (this.#heard) this.#base?.pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#heard) this.#base?.resume();
  }

  cut(): void {
    this.#base?.cut();
  }
}
