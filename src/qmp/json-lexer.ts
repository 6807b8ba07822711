/**
 * Bytes of JSON into tokens, however they come in pieces. What is no token is given back as one of kind `stray`, and
 * what follows is passed over up to the next byte that has structure, or a control byte (a line's end). Strings may
 * have single quotes. Memory: twice the token under way.
 */

export type TokenKind = '{' | '}' | '[' | ']' | ':' | ',' | 'string' | 'integer' | 'float' | 'keyword' | 'stray';

/** `bytes` are those of a string, a number, a word or what is none of these, until it returns. */
export type TokenSink = (kind: TokenKind, bytes: Uint8Array) => void;

type State =
  | 'start'
  | 'recovery'
  | 'string'
  | 'escape'
  | 'keyword'
  /** A sign, which wants a digit. */
  | 'minus'
  | 'zero'
  | 'digits'
  /** A point, which wants a digit. */
  | 'point'
  | 'fraction'
  /** An e, which wants a sign or a digit. */
  | 'e'
  | 'sign'
  | 'exponent';

const NUMBER_ENDS: Partial<Record<State, TokenKind>> = {
  zero: 'integer',
  digits: 'integer',
  fraction: 'float',
  exponent: 'float',
};

const QUOTE = 0x22;
const APOSTROPHE = 0x27;
const BACKSLASH = 0x5c;
const MINUS = 0x2d;
const PLUS = 0x2b;
const POINT = 0x2e;

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}

function isLower(byte: number): boolean {
  return byte >= 0x61 && byte <= 0x7a;
}

/** What may follow in a token without changing the state. */
const RUNS: Partial<Record<State, (byte: number) => boolean>> = {
  keyword: isLower,
  digits: isDigit,
  fraction: isDigit,
  exponent: isDigit,
};

/** Room for a token that is usual. */
const USUAL = 4096;

function structure(byte: number): TokenKind | undefined {
  switch (byte) {
    case 0x7b:
      return '{';
    case 0x7d:
      return '}';
    case 0x5b:
      return '[';
    case 0x5d:
      return ']';
    case 0x3a:
      return ':';
    case 0x2c:
      return ',';
    default:
      return undefined;
  }
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d;
}

export class JsonLexer {
  readonly #sink: TokenSink;
  #state: State = 'start';
  #quote = 0;
  /** The token under way: a text that grew by characters would cost 32 bytes for each. */
  #token = new Uint8Array(USUAL);
  #length = 0;

  constructor(sink: TokenSink) {
    this.#sink = sink;
  }

  /** Bytes of the token under way. */
  get pending(): number {
    return this.#length;
  }

  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const end = this.#runEnd(bytes, at);
      if (end > at) this.#append(bytes.subarray(at, end));
      at = end;
      if (at === bytes.length) return;
      // A byte that ends a number or a word is looked at again.
      while (!this.#take(bytes[at]!));
      at++;
    }
  }

  /** Where the bytes end that change nothing but the length of the token under way. */
  #runEnd(bytes: Uint8Array, from: number): number {
    const belongs = this.#state === 'string' ? this.#isPlain : RUNS[this.#state];
    let at = from;
    if (belongs) while (at < bytes.length && belongs(bytes[at]!)) at++;
    return at;
  }

  readonly #isPlain = (byte: number): boolean =>
    byte >= 0x20 && byte < 0xfe && byte !== this.#quote && byte !== BACKSLASH;

  /** Forgets the token under way and passes over what is left of it. */
  recover(): void {
    this.#forget();
    this.#state = 'recovery';
  }

  #append(run: Uint8Array): void {
    this.#room(run.length);
    this.#token.set(run, this.#length);
    this.#length += run.length;
  }

  #room(more: number): void {
    if (this.#length + more <= this.#token.length) return;
    const larger = new Uint8Array(Math.max(2 * this.#token.length, this.#length + more));
    larger.set(this.#token.subarray(0, this.#length));
    this.#token = larger;
  }

  #forget(): void {
    this.#length = 0;
    if (this.#token.length > USUAL) this.#token = new Uint8Array(USUAL);
  }

  #emit(kind: TokenKind): void {
    const bytes = this.#token.subarray(0, this.#length);
    this.#forget();
    this.#state = kind === 'stray' ? 'recovery' : 'start';
    this.#sink(kind, bytes);
  }

  /** False where the byte has to be looked at again, as the beginning of something else. */
  #take(byte: number): boolean {
    switch (this.#state) {
      case 'start':
        return this.#begin(byte);
      case 'recovery':
        if (structure(byte) === undefined && byte >= 0x20) return true;
        this.#state = 'start';
        return false;
      case 'string':
      case 'escape':
        return this.#inString(byte);
      case 'keyword':
        if (isLower(byte)) return this.#keep(byte, 'keyword');
        this.#emit('keyword');
        return false;
      default:
        return this.#inNumber(byte);
    }
  }

  #keep(byte: number, state: State): true {
    this.#room(1);
    this.#token[this.#length++] = byte;
    this.#state = state;
    return true;
  }

  #stray(byte: number): true {
    this.#keep(byte, 'start');
    this.#emit('stray');
    return true;
  }

  #begin(byte: number): boolean {
    if (isBlank(byte)) return true;
    const kind = structure(byte);
    if (kind) {
      this.#emit(kind);
      return true;
    }
    if (byte === QUOTE || byte === APOSTROPHE) {
      this.#quote = byte;
      return this.#keep(byte, 'string');
    }
    if (byte === MINUS) return this.#keep(byte, 'minus');
    if (byte === 0x30) return this.#keep(byte, 'zero');
    if (isDigit(byte)) return this.#keep(byte, 'digits');
    if (isLower(byte)) return this.#keep(byte, 'keyword');
    return this.#stray(byte);
  }

  #inString(byte: number): true {
    // Neither control bytes nor these are ever in UTF-8 text.
    if (byte < 0x20 || byte >= 0xfe) return this.#stray(byte);
    if (this.#state === 'escape') return this.#keep(byte, 'string');
    if (byte === BACKSLASH) return this.#keep(byte, 'escape');
    this.#keep(byte, 'string');
    if (byte === this.#quote) this.#emit('string');
    return true;
  }

  #inNumber(byte: number): boolean {
    const next = this.#afterNumber(byte);
    if (next) return this.#keep(byte, next);
    const kind = NUMBER_ENDS[this.#state];
    if (kind === undefined || (this.#state === 'zero' && isDigit(byte))) return this.#stray(byte);
    this.#emit(kind);
    return false;
  }

  #afterNumber(byte: number): State | undefined {
    const digit = isDigit(byte);
    const e = byte === 0x65 || byte === 0x45;
    switch (this.#state) {
      case 'minus':
        return byte === 0x30 ? 'zero' : digit ? 'digits' : undefined;
      case 'zero':
        return byte === POINT ? 'point' : e ? 'e' : undefined;
      case 'digits':
        return digit ? 'digits' : byte === POINT ? 'point' : e ? 'e' : undefined;
      case 'point':
        return digit ? 'fraction' : undefined;
      case 'fraction':
        return digit ? 'fraction' : e ? 'e' : undefined;
      case 'e':
        return digit ? 'exponent' : byte === PLUS || byte === MINUS ? 'sign' : undefined;
      case 'sign':
      case 'exponent':
        return digit ? 'exponent' : undefined;
      default:
        return undefined;
    }
  }
}
