/** Finds function bodies in a token stream and measures them. */
import type { Token } from './scan.ts';

export interface FunctionSpan {
  readonly name: string;
  /** The line the header begins on, from 1. */
  readonly line: number;
  /** Lines from the header to the closing brace, both counted. */
  readonly lines: number;
}

const PAIRS: Readonly<Record<string, string>> = { '(': ')', '[': ']', '{': '}' };
const CLOSERS = new Set(Object.values(PAIRS));
/** Words that stand before `(...) {` without being a function's name. */
const CONTROL = new Set(['if', 'for', 'while', 'switch', 'catch', 'with', 'await', 'return', 'using']);
/** Words of a type that want an operand after them. */
const TYPE_PREFIXES = new Set(['keyof', 'typeof', 'readonly', 'infer', 'asserts', 'unique', 'new', 'abstract']);
/** What joins two operands of a type. */
const TYPE_JOINS = new Set(['|', '&', '=>', '.', 'extends', 'is', '?', ':']);
/** Words that begin a statement: what looked like a return type was the colon of a case label. */
const STATEMENTS = new Set(['return', 'try', 'do', 'if', 'for', 'throw', 'else', 'break', 'const', 'let', 'switch']);

/** The index of the bracket that closes each opening bracket. */
function closings(tokens: readonly Token[]): Map<number, number> {
  const pairs = new Map<number, number>();
  const open: number[] = [];
  tokens.forEach((token, at) => {
    if (token.kind !== 'punct' && token.kind !== 'template') return;
    if (token.kind === 'punct' && PAIRS[token.text]) open.push(at);
    else if (token.kind === 'punct' && CLOSERS.has(token.text)) {
      const from = open.pop();
      if (from !== undefined) pairs.set(from, at);
    }
  });
  return pairs;
}

/** From `<` the index of the `>` that closes it; undefined when it was a comparison. */
function closingAngle(tokens: readonly Token[], from: number): number | undefined {
  let depth = 0;
  for (let at = from; at < tokens.length; at += 1) {
    const { kind, text } = tokens[at]!;
    if (kind !== 'punct') continue;
    if (text === '<') depth += 1;
    else if (text === '>') depth -= 1;
    else if (text === ';') return undefined;
    if (depth === 0) return at;
  }
  return undefined;
}

/** From behind a return type's colon, the index of the brace that opens the body; undefined when there is no body. */
function afterType(tokens: readonly Token[], pairs: Map<number, number>, from: number): number | undefined {
  let wantsOperand = true;
  for (let at = from; at < tokens.length; at += 1) {
    const { kind, text } = tokens[at]!;
    if (kind === 'punct' && text === '{' && !wantsOperand) return at;
    if (kind === 'word' && STATEMENTS.has(text)) return undefined;
    if (kind === 'punct' && PAIRS[text] && (wantsOperand || text === '[')) {
      at = pairs.get(at) ?? tokens.length;
      wantsOperand = false;
    } else if (kind === 'punct' && text === '<') {
      at = closingAngle(tokens, at) ?? tokens.length;
    } else if (TYPE_JOINS.has(text)) wantsOperand = true;
    else if (wantsOperand && kind !== 'punct') wantsOperand = kind === 'word' && TYPE_PREFIXES.has(text);
    else return undefined;
  }
  return undefined;
}

/** From a parameter list's opening parenthesis, the index of the brace that opens the body. */
function bodyOf(tokens: readonly Token[], pairs: Map<number, number>, paren: number): number | undefined {
  const end = pairs.get(paren);
  if (end === undefined) return undefined;
  const next = tokens[end + 1];
  if (next?.kind !== 'punct') return undefined;
  if (next.text === '{') return end + 1;
  return next.text === ':' ? afterType(tokens, pairs, end + 2) : undefined;
}

/** The index of the token that names what a parameter list at `paren` belongs to. */
function nameBefore(tokens: readonly Token[], paren: number): number | undefined {
  let at = paren - 1;
  if (tokens[at]?.text === '>') {
    let depth = 1;
    while (depth > 0 && at > 0) {
      at -= 1;
      if (tokens[at]?.text === '>') depth += 1;
      else if (tokens[at]?.text === '<') depth -= 1;
    }
    at -= 1;
  }
  const token = tokens[at];
  const named = token && (token.kind === 'word' || token.kind === 'string' || token.text === ']' || token.text === '*');
  return named && !CONTROL.has(token.text) ? at : undefined;
}

/** Functions, methods and arrow functions with a block body, in the order they begin. */
export function functionsOf(tokens: readonly Token[]): FunctionSpan[] {
  const pairs = closings(tokens);
  const found: FunctionSpan[] = [];
  const push = (header: number, body: number, name: string): void => {
    const line = tokens[header]!.line;
    const end = tokens[pairs.get(body) ?? tokens.length - 1]!.line;
    found.push({ name, line, lines: end - line + 1 });
  };
  tokens.forEach((token, at) => {
    if (token.kind !== 'punct') return;
    if (token.text === '=>' && tokens[at + 1]?.text === '{' && tokens[at + 1]?.kind === 'punct') {
      push(at, at + 1, 'an arrow function');
    } else if (token.text === '(') {
      const name = nameBefore(tokens, at);
      const body = name === undefined ? undefined : bodyOf(tokens, pairs, at);
      if (name !== undefined && body !== undefined) push(name, body, tokens[name]!.text);
    }
  });
  return found;
}
