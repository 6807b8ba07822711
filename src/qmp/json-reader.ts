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
  #texts: string[] = [];
  #bytes = 0;
  #braces = 0;
  #brackets = 0;

  constructor(onValue: (value: Json) => void, onError: (error: JsonError) => void, limits: JsonLimits = JSON_LIMITS) {
    this.#onValue = onValue;
    this.#onError = onError;
    this.#limits = limits;
    this.#lexer = new JsonLexer((kind, text) => this.#token(kind, text));
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

  #token(kind: TokenKind, text: string): void {
    if (kind === 'stray') {
      this.#fail(wrong(`stray '${decodeUtf8(text) ?? text.replace(/[\u0080-\u00ff]/g, '\ufffd')}'`));
      return;
    }
    this.#kinds.push(kind);
    this.#texts.push(text);
    this.#bytes += text.length;
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
  readonly #texts: readonly string[];
  #at = 0;

  constructor(kinds: readonly TokenKind[], texts: readonly string[]) {
    this.#kinds = kinds;
    this.#texts = texts;
  }

  value(): Json {
    const text = this.#texts[this.#at]!;
    const kind = this.#next();
    switch (kind) {
      case '{':
        return this.#object();
      case '[':
        return this.#array();
      case 'string':
        return stringOf(text);
      case 'integer':
        return integerOf(text);
      case 'float':
        return floatOf(text);
      case 'keyword':
        return keywordOf(text);
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

const ESCAPES: Readonly<Record<string, string>> = {
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

/** The text of a string token, whose characters are bytes. */
function stringOf(token: string): string {
  const body = token.slice(1, -1);
  const text = decodeUtf8(body);
  if (text === undefined) throw wrong('invalid UTF-8 sequence in string');
  return body.includes('\\') ? unescaped(text) : text;
}

function decodeUtf8(bytes: string): string | undefined {
  if (!/[\u0080-\u00ff]/.test(bytes)) return bytes;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(
      Uint8Array.from(bytes, (char) => char.charCodeAt(0)),
    );
  } catch {
    return undefined;
  }
}

function unescaped(text: string): string {
  const parts: string[] = [];
  let from = 0;
  for (let at = text.indexOf('\\'); at >= 0; at = text.indexOf('\\', from)) {
    parts.push(text.slice(from, at));
    const letter = text[at + 1]!;
    if (letter === 'u') {
      const char = codePointAt(text, at);
      parts.push(char);
      from = at + 6 * char.length;
      continue;
    }
    const char = Object.hasOwn(ESCAPES, letter) ? ESCAPES[letter] : undefined;
    if (char === undefined) throw wrong('invalid escape sequence in string');
    parts.push(char);
    from = at + 2;
  }
  parts.push(text.slice(from));
  return parts.join('');
}

/** The character of `\uXXXX`, or of the two that are a surrogate pair. */
function codePointAt(text: string, at: number): string {
  const invalid = (): JsonError => wrong(`\\u${text.slice(at + 2, at + 6)} is not a valid Unicode character`);
  const first = hexAt(text, at);
  if (first === undefined || (first >= 0xdc00 && first <= 0xdfff)) throw invalid();
  if (first < 0xd800 || first > 0xdbff) return String.fromCharCode(first);
  const second = text.startsWith('\\u', at + 6) ? hexAt(text, at + 6) : undefined;
  if (second === undefined || second < 0xdc00 || second > 0xdfff) throw invalid();
  return String.fromCharCode(first, second);
}

function hexAt(text: string, at: number): number | undefined {
  const digits = text.slice(at + 2, at + 6);
  return /^[0-9a-fA-F]{4}$/.test(digits) ? Number.parseInt(digits, 16) : undefined;
}
