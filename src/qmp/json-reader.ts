/**
 * A stream of JSON values out of bytes that come in pieces. What is wrong is told of once, and reading goes on after
 * it. The bounds are those that clients know from QEMU's monitor: 64 MiB of tokens in a value, 2 Mi tokens, 1024
 * levels.
 */
import { MiB } from '../base/units.ts';
import { emptyObject, integerOf, type Json } from './json.ts';
import { JsonLexer, type TokenKind } from './json-lexer.ts';

export interface JsonLimits {
  /** Bytes of the tokens of one value. */
  readonly bytes: number;
  readonly tokens: number;
  /** Objects and arrays inside each other. */
  readonly depth: number;
}

export const JSON_LIMITS: JsonLimits = { bytes: 64 * MiB, tokens: 2 * 1024 * 1024, depth: 1024 };

/** What was read is no JSON. */
export class JsonError extends Error {
  override readonly name = 'JsonError';
}

function wrong(why: string): JsonError {
  return new JsonError(`JSON parse error, ${why}`);
}

export class JsonReader {
  readonly #onValue: (value: Json) => void;
  readonly #onError: (error: JsonError) => void;
  readonly #limits: JsonLimits;
  readonly #lexer: JsonLexer;
  #kinds: TokenKind[] = [];
  /** Undefined where the bytes are not UTF-8. */
  #texts: (string | undefined)[] = [];
  #bytes = 0;
  #braces = 0;
  #brackets = 0;

  constructor(onValue: (value: Json) => void, onError: (error: JsonError) => void, limits: JsonLimits = JSON_LIMITS) {
    this.#onValue = onValue;
    this.#onError = onError;
    this.#limits = limits;
    this.#lexer = new JsonLexer((kind, bytes) => this.#token(kind, bytes));
  }

  push(bytes: Uint8Array): void {
    // In pieces, so that a token that never ends is found before it has grown much beyond the limit.
    for (let at = 0; at < bytes.length; at += MiB) {
      this.#lexer.push(bytes.subarray(at, at + MiB));
      if (this.#bytes + this.#lexer.pending <= this.#limits.bytes) continue;
      this.#lexer.recover();
      this.#fail(new JsonError('JSON token size limit exceeded'));
    }
  }

  #token(kind: TokenKind, bytes: Uint8Array): void {
    if (kind === 'stray') {
      this.#fail(wrong(`stray '${LENIENT.decode(bytes)}'`));
      return;
    }
    this.#kinds.push(kind);
    this.#texts.push(bytes.length === 0 ? '' : decoded(bytes));
    this.#bytes += bytes.length;
    if (kind === '{') this.#braces++;
    else if (kind === '}') this.#braces--;
    else if (kind === '[') this.#brackets++;
    else if (kind === ']') this.#brackets--;
    const over = this.#overLimit();
    if (over !== undefined) {
      this.#fail(new JsonError(`JSON ${over} limit exceeded`));
      return;
    }
    const open = this.#braces > 0 || this.#brackets > 0;
    if (open && this.#braces >= 0 && this.#brackets >= 0) return;
    this.#parse();
  }

  #overLimit(): string | undefined {
    if (this.#bytes > this.#limits.bytes) return 'token size';
    if (this.#kinds.length > this.#limits.tokens) return 'token count';
    if (this.#braces + this.#brackets > this.#limits.depth) return 'nesting depth';
    return undefined;
  }

  #parse(): void {
    const parser = new Parser(this.#kinds, this.#texts);
    this.#reset();
    let value: Json;
    try {
      value = parser.value();
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      this.#onError(error);
      return;
    }
    this.#onValue(value);
  }

  #fail(error: JsonError): void {
    this.#reset();
    this.#onError(error);
  }

  #reset(): void {
    this.#kinds = [];
    this.#texts = [];
    this.#bytes = 0;
    this.#braces = 0;
    this.#brackets = 0;
  }
}

/** Recursion is bounded by the limit of depth. */
class Parser {
  readonly #kinds: readonly TokenKind[];
  readonly #texts: readonly (string | undefined)[];
  #at = 0;

  constructor(kinds: readonly TokenKind[], texts: readonly (string | undefined)[]) {
    this.#kinds = kinds;
    this.#texts = texts;
  }

  value(): Json {
    const text = this.#texts[this.#at];
    const kind = this.#next();
    switch (kind) {
      case '{':
        return this.#object();
      case '[':
        return this.#array();
      case 'string':
        return stringOf(text);
      case 'integer':
        return integerOf(text!);
      case 'float':
        return floatOf(text!);
      case 'keyword':
        return keywordOf(text!);
      default:
        throw wrong('expecting value');
    }
  }

  #next(): TokenKind {
    const kind = this.#kinds[this.#at++];
    if (kind === undefined) throw wrong('premature EOI');
    return kind;
  }

  #object(): Json {
    const object = emptyObject();
    if (this.#kinds[this.#at] === '}') {
      this.#at++;
      return object;
    }
    for (;;) {
      const key = this.value();
      if (typeof key !== 'string') throw wrong('key is not a string in object');
      if (this.#next() !== ':') throw wrong('missing : in object pair');
      const value = this.value();
      if (Object.hasOwn(object, key)) throw wrong('duplicate key');
      object[key] = value;
      const kind = this.#next();
      if (kind === '}') return object;
      if (kind !== ',') throw wrong('expected separator in dict');
    }
  }

  #array(): Json {
    const array: Json[] = [];
    if (this.#kinds[this.#at] === ']') {
      this.#at++;
      return array;
    }
    for (;;) {
      array.push(this.value());
      const kind = this.#next();
      if (kind === ']') return array;
      if (kind !== ',') throw wrong('expected separator in list');
    }
  }
}

function keywordOf(text: string): Json {
  if (text === 'true') return true;
  if (text === 'false') return false;
  if (text === 'null') return null;
  throw wrong(`invalid keyword '${text}'`);
}

function floatOf(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value)) return value;
  throw wrong(`number '${text.slice(0, 40)}' is too large`);
}

const ESCAPES: Readonly<Record<string, string | undefined>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

const LENIENT = new TextDecoder('utf-8', { ignoreBOM: true });
const STRICT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function decoded(bytes: Uint8Array): string | undefined {
  try {
    return STRICT.decode(bytes);
  } catch {
    return undefined;
  }
}

/** The text between the quotes. */
function stringOf(token: string | undefined): string {
  if (token === undefined || /\p{Noncharacter_Code_Point}/u.test(token)) {
    throw wrong('invalid UTF-8 sequence in string');
  }
  const body = token.slice(1, -1);
  return body.includes('\\') ? unescaped(body) : body;
}

/** Characters that are put together at once. */
const PIECE = 4096;

function unescaped(text: string): string {
  const codes: number[] = [];
  let done = '';
  for (let at = 0; at < text.length; ) {
    if (codes.length >= PIECE) done += String.fromCharCode(...codes.splice(0));
    if (text[at] !== '\\') {
      codes.push(text.charCodeAt(at++));
      continue;
    }
    const letter = text[at + 1]!;
    const char = letter === 'u' ? codePointAt(text, at) : ESCAPES[letter];
    if (char === undefined) throw wrong('invalid escape sequence in string');
    for (let i = 0; i < char.length; i++) codes.push(char.charCodeAt(i));
    at += letter === 'u' ? 6 * char.length : 2;
  }
  return done + String.fromCharCode(...codes);
}

/** The character of `\uXXXX`, or of the two that are a surrogate pair. */
function codePointAt(text: string, at: number): string {
  const first = hexAt(text, at);
  const second = text.startsWith('\\u', at + 6) ? hexAt(text, at + 6) : undefined;
  const pair = first !== undefined && second !== undefined && first >> 10 === 0x36 && second >> 10 === 0x37;
  const code = pair ? 0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff) : first;
  if (code !== undefined && isCharacter(code)) return String.fromCodePoint(code);
  throw wrong(`${text.slice(at, at + (pair ? 12 : 6))} is not a valid Unicode character`);
}

/** Neither half of a pair, nor what is never to be a character. */
function isCharacter(code: number): boolean {
  return code >> 11 !== 0x1b && (code < 0xfdd0 || code > 0xfdef) && (code & 0xfffe) !== 0xfffe;
}

function hexAt(text: string, at: number): number | undefined {
  const digits = text.slice(at + 2, at + 6);
  return /^[0-9a-fA-F]{4}$/.test(digits) ? Number.parseInt(digits, 16) : undefined;
}
