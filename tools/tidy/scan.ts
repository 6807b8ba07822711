/**
 * A tokenizer for the TypeScript of this repository, enough to measure functions, find imports and look for words in
 * code without being fooled by comments, strings, templates and regular expressions. It knows no grammar beyond that.
 */

export type TokenKind = 'word' | 'number' | 'string' | 'template' | 'regex' | 'punct';

export interface Token {
  readonly kind: TokenKind;
  /** As written; of a string only what is between the quotes. */
  readonly text: string;
  /** The first line, from 1. */
  readonly line: number;
}

export interface Scan {
  readonly tokens: readonly Token[];
  /** The lines with comments, string contents and regular expressions blanked out, at the same columns. */
  readonly code: readonly string[];
  /** The lines as they are. */
  readonly lines: readonly string[];
}

/** Words after which a slash begins a regular expression, though a word after which it divides looks the same. */
const BEFORE_REGEX = new Set([
  'return',
  'typeof',
  'case',
  'in',
  'of',
  'do',
  'else',
  'void',
  'delete',
  'throw',
  'await',
]);

const WORD = /[\p{ID_Start}$_#@][\p{ID_Continue}$\u200c\u200d]*/uy;
const NUMBER = /\d(?:[\w.]|(?<=[eE])[+-](?=\d))*/y;
const SPACE = /\s+/y;
const REGEX = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\[\n])+\/[a-z]*/y;
const ARROW = /=>/y;

class Scanner {
  readonly #text: string;
  readonly #blank: string[];
  readonly #tokens: Token[] = [];
  /** For each open brace: whether it closes a template's `${`. */
  readonly #braces: boolean[] = [];
  #at = 0;
  #line = 1;

  constructor(text: string) {
    this.#text = text;
    this.#blank = text.split('');
  }

  scan(): Scan {
    while (this.#at < this.#text.length) this.#next();
    const code = this.#blank.join('').split('\n');
    return { tokens: this.#tokens, code, lines: this.#text.split('\n') };
  }

  #next(): void {
    if (this.#match(SPACE) !== undefined) return;
    const two = this.#text.slice(this.#at, this.#at + 2);
    const one = two.charAt(0);
    if (two === '//' || two === '/*' || (two === '#!' && this.#at === 0)) this.#comment(two);
    else if (one === "'" || one === '"') this.#string(one);
    else if (one === '`') this.#template();
    else if (one === '}' && this.#braces.pop() === true) this.#template();
    else if (one === '/' && this.#regexMayBegin() && this.#token('regex', REGEX)) return;
    else if (this.#token('word', WORD) || this.#token('number', NUMBER) || this.#token('punct', ARROW)) return;
    else this.#punct(one);
  }

  /** Moves past what the pattern matches here, counting lines. */
  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined) return undefined;
    this.#advance(found.length);
    return found;
  }

  #advance(count: number): void {
    const end = Math.min(this.#at + count, this.#text.length);
    for (; this.#at < end; this.#at += 1) if (this.#text.charCodeAt(this.#at) === 10) this.#line += 1;
  }

  #token(kind: TokenKind, pattern: RegExp): boolean {
    const line = this.#line;
    const from = this.#at;
    const text = this.#match(pattern);
    if (text === undefined) return false;
    if (kind === 'regex') this.#erase(from, this.#at);
    this.#tokens.push({ kind, text, line });
    return true;
  }

  #punct(text: string): void {
    if (text === '{') this.#braces.push(false);
    this.#tokens.push({ kind: 'punct', text, line: this.#line });
    this.#advance(1);
  }

  #erase(from: number, to: number): void {
    for (let at = from; at < to; at += 1) if (this.#blank[at] !== '\n') this.#blank[at] = ' ';
  }

  #comment(opening: string): void {
    const from = this.#at;
    const end = opening === '/*' ? this.#text.indexOf('*/', from + 2) + 2 : this.#text.indexOf('\n', from);
    this.#advance((end > 1 ? end : this.#text.length) - from);
    this.#erase(from, this.#at);
  }

  #string(quote: string): void {
    const line = this.#line;
    const from = this.#at;
    let to = from + 1;
    while (to < this.#text.length && this.#text.charAt(to) !== quote) to += this.#text.charAt(to) === '\\' ? 2 : 1;
    this.#advance(to + 1 - from);
    this.#erase(from + 1, to);
    this.#tokens.push({ kind: 'string', text: this.#text.slice(from + 1, to), line });
  }

  /** A template from its backquote, or from the brace that closes a substitution, to the next of either kind. */
  #template(): void {
    const line = this.#line;
    const from = this.#at;
    let to = from + 1;
    while (to < this.#text.length && this.#text.charAt(to) !== '`' && !this.#text.startsWith('${', to)) {
      to += this.#text.charAt(to) === '\\' ? 2 : 1;
    }
    const opens = this.#text.startsWith('${', to);
    if (opens) this.#braces.push(true);
    this.#advance(to + (opens ? 2 : 1) - from);
    this.#erase(from + 1, to);
    this.#tokens.push({ kind: 'template', text: this.#text.slice(from + 1, to), line });
  }

  #regexMayBegin(): boolean {
    const last = this.#tokens.at(-1);
    if (!last) return true;
    if (last.kind === 'word') return BEFORE_REGEX.has(last.text);
    return last.kind === 'punct' && !')]}'.includes(last.text);
  }
}

export function scan(text: string): Scan {
  return new Scanner(text).scan();
}

export interface ImportOf {
  readonly specifier: string;
  readonly line: number;
  /** Nothing of it is left at run time. */
  readonly typeOnly: boolean;
}

/** The modules that a file names in import and export declarations, in import() and in require(). */
export function importsOf(tokens: readonly Token[]): ImportOf[] {
  const found: ImportOf[] = [];
  let typeOnly = false;
  for (let at = 0; at < tokens.length; at += 1) {
    const token = tokens[at]!;
    const next = tokens[at + 1];
    if (token.kind !== 'word') continue;
    if (token.text === 'import' || token.text === 'export') typeOnly = next?.text === 'type';
    const called = (token.text === 'import' || token.text === 'require') && next?.text === '(';
    const specifier = called ? tokens[at + 2] : next;
    if ((called || token.text === 'from' || token.text === 'import') && specifier?.kind === 'string') {
      found.push({ specifier: specifier.text, line: token.line, typeOnly: token.text === 'from' && typeOnly });
    }
  }
  return found;
}
