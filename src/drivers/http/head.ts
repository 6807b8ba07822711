/**
 * The head of a response and the framing of its body, byte for byte. [RFC 9112] Pure.
 *
 * Strict: what could be read in two ways (a line that ends otherwise, a length that is said twice, or beside chunks) is
 * an error, since the bytes that follow on the connection would be taken for something they are not.
 */
import type { Bytes } from '../../base/units.ts';
import type { Headers } from './response.ts';

/** A server's head is a few hundred bytes. Heads of 1xx count with the one that they come before. */
export const HEAD_MAX: Bytes = 32 * 1024;

/** Why what came is no response. */
export const NOT_HTTP = 'the server does not speak HTTP as it should';
export const TOO_LONG = 'the headers of the response do not end';

export interface Head {
  readonly status: number;
  readonly headers: Headers;
  /** The connection may be used again after the body. */
  readonly persistent: boolean;
}

const STATUS_LINE = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: (?:\t|\P{Cc})*)?$/u;
const FIELD = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:\t|\P{Cc})*)$/u;
const CR = 13;
const LF = 10;
const latin1 = new TextDecoder('latin1');

/** Takes heads in, in pieces of any length. */
export class HeadReader {
  readonly #kept = new Uint8Array(HEAD_MAX);
  #fill = 0;
  /** Where the head begins that is being taken in: others of the same response were before it. */
  #from = 0;
  /** Set once it is complete: the head, or what is wrong with it. */
  head: Head | string | undefined;

  /** For the next response, or (`interim`) for the next head of this one. */
  begin(interim = false): void {
    if (!interim) this.#fill = 0;
    this.#from = this.#fill;
    this.head = undefined;
  }

  /** How many of the bytes belong to it. */
  feed(bytes: Uint8Array): Bytes {
    const before = this.#fill;
    const room = Math.min(bytes.length, HEAD_MAX - before);
    this.#kept.set(bytes.subarray(0, room), before);
    this.#fill += room;
    const end = this.#find(Math.max(this.#from, before - 3));
    if (end >= 0) {
      this.#fill = end;
      this.head = parsed(latin1.decode(this.#kept.subarray(this.#from, end - 4)));
      return end - before;
    }
    if (!couldBegin(this.#kept.subarray(this.#from, this.#fill))) this.head = NOT_HTTP;
    else if (this.#fill === HEAD_MAX) this.head = TOO_LONG;
    return room;
  }

  /** Where the empty line ends; -1 when it has not come. */
  #find(from: number): number {
    const bytes = this.#kept;
    for (let at = bytes.indexOf(LF, from + 3); at >= 0 && at < this.#fill; at = bytes.indexOf(LF, at + 1)) {
      if (bytes[at - 1] === CR && bytes[at - 2] === LF && bytes[at - 3] === CR) return at + 1;
    }
    return -1;
  }
}

/** Something else than HTTP is known by its first bytes: it may never send an empty line. */
function couldBegin(bytes: Uint8Array): boolean {
  const text = latin1.decode(bytes.subarray(0, 5));
  return 'HTTP/'.startsWith(text);
}

function parsed(text: string): Head | string {
  const [first = '', ...lines] = text.split('\r\n');
  const [, minor, status] = STATUS_LINE.exec(first) ?? [];
  if (status === undefined) return NOT_HTTP;
  const headers: Record<string, string | string[] | undefined> = Object.create(null);
  for (const line of lines) {
    const [, field, value] = FIELD.exec(line) ?? [];
    if (field === undefined) return NOT_HTTP;
    const name = field.toLowerCase();
    const trimmed = value!.replace(/[ \t]+$/, '');
    const there = headers[name];
    headers[name] = there === undefined ? trimmed : [there, trimmed].flat();
  }
  const connection = [headers.connection ?? ''].flat().join(',').toLowerCase();
  const closes = connection.split(',').some((word) => word.trim() === 'close');
  return { status: Number(status), headers, persistent: minor === '1' && !closes };
}

const State = { DATA: 0, SIZE: 1, DATA_END: 2, TRAILER: 3, ENDED: 4 } as const;
/** Of the line before a chunk, and of the trailer: nothing in them is of use. */
const LINE_MAX: Bytes = 1024;
const TRAILER_MAX: Bytes = HEAD_MAX;

/** Takes a body in, in pieces of any length: tells the content from what frames it. */
export class BodyReader {
  /** What is wrong with it. Nothing is to be fed after that. */
  wrong: string | undefined;
  /** It ends with the connection. */
  readonly untilClose: boolean = false;
  readonly #chunked: boolean;
  #state: number = State.DATA;
  /** Of the content, or of the chunk, that has not come. */
  #left: Bytes = Number.POSITIVE_INFINITY;
  #line = '';
  #trailer: Bytes = 0;

  constructor(headers: Headers) {
    const length = headers['content-length'];
    const coding = headers['transfer-encoding'];
    this.#chunked = coding !== undefined;
    if (coding !== undefined) {
      this.#state = State.SIZE;
      if (length !== undefined || String(coding).toLowerCase() !== 'chunked') this.wrong = NOT_HTTP;
    } else if (length === undefined) this.untilClose = true;
    else if (typeof length !== 'string' || !/^\d{1,15}$/.test(length)) this.wrong = NOT_HTTP;
    else {
      this.#left = Number(length);
      if (this.#left === 0) this.#state = State.ENDED;
    }
  }

  get ended(): boolean {
    return this.#state === State.ENDED;
  }

  /** Of the bytes given to {@link next}: so many are done with. */
  taken: Bytes = 0;

  /** The content that `bytes` begins with, behind what frames it; empty when there is none. */
  next(bytes: Uint8Array): Uint8Array {
    this.taken = 0;
    while (this.taken < bytes.length && !this.ended && this.wrong === undefined) {
      if (this.#state === State.DATA) {
        const content = bytes.subarray(this.taken, this.taken + Math.min(this.#left, bytes.length - this.taken));
        this.taken += content.length;
        this.#left -= content.length;
        if (this.#left === 0) this.#state = this.#chunked ? State.DATA_END : State.ENDED;
        return content;
      }
      this.#byte(bytes[this.taken++]!);
    }
    return bytes.subarray(0, 0);
  }
  /** A byte of a line between chunks. */
  #byte(byte: number): void {
    this.#line += String.fromCharCode(byte);
    if (this.#state === State.TRAILER && ++this.#trailer > TRAILER_MAX) this.wrong = TOO_LONG;
    if (this.#line.length > LINE_MAX) this.wrong = NOT_HTTP;
    if (byte !== LF || this.wrong !== undefined) return;
    const line = this.#line;
    this.#line = '';
    if (this.#state === State.DATA_END) {
      if (line === '\r\n') this.#state = State.SIZE;
      else this.wrong = NOT_HTTP;
    } else if (this.#state === State.TRAILER) {
      if (line === '\r\n') this.#state = State.ENDED;
      else if (!line.endsWith('\r\n')) this.wrong = NOT_HTTP;
    } else {
      const [, size] = /^([0-9a-f]{1,12})(?:[ \t]*;[^\r\n]*)?\r\n$/i.exec(line) ?? [];
      if (size === undefined) this.wrong = NOT_HTTP;
      this.#left = Number.parseInt(size ?? '0', 16);
      this.#state = this.#left === 0 ? State.TRAILER : State.DATA;
    }
  }
}
