/**
 * Command lines as getopt_long reads them, for the programs that blockplane stands in for: short options in clusters
 * (`-qf raw`), long ones cut short where that is plain, arguments in the next word or behind '=', operands between
 * options, and '--'. (POSIX.1-2017 XBD 12.2; getopt_long(3).)
 */

export interface OptionDef {
  /** One letter. */
  readonly short?: string;
  /** Without dashes. */
  readonly long?: string;
  /** Whether it takes an argument; an optional one is in the same word. Default: none. */
  readonly argument?: 'required' | 'optional';
}

export interface GivenOption<D extends OptionDef> {
  readonly def: D;
  readonly value: string | undefined;
  /** As it stands on the command line: '-f raw', '--format=raw'. */
  readonly spelled: string;
}

/** In the order of the command line. */
export interface CommandLine<D extends OptionDef> {
  readonly options: readonly GivenOption<D>[];
  readonly operands: readonly string[];
}

export type OptionFault = 'unknown' | 'ambiguous' | 'missing' | 'unwanted';

/** A word of the command line that is no option: the programs differ in how they say it. */
export class OptionError extends Error {
  override readonly name = 'OptionError';
  readonly fault: OptionFault;
  /** The whole word where it is a long option, else '-' and the letter. */
  readonly word: string;
  /** The word of the command line that it is in. */
  readonly whole: string;

  constructor(fault: OptionFault, word: string, message: string, whole = word) {
    super(message);
    this.fault = fault;
    this.word = word;
    this.whole = whole;
  }
}

interface ReadSettings {
  /** Options end with the first operand. Default: they may come after operands as well. */
  readonly operandsLast?: boolean;
}

/** Throws {@link OptionError} for the first word that is wrong; its message is the C library's. */
export function readCommandLine<D extends OptionDef>(
  words: readonly string[],
  defs: readonly D[],
  { operandsLast = false }: ReadSettings = {},
): CommandLine<D> {
  const options: GivenOption<D>[] = [];
  const operands: string[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!;
    if (word === '--') {
      operands.push(...words.slice(at + 1));
      break;
    }
    if (word === '-' || !word.startsWith('-')) {
      if (operandsLast) {
        operands.push(...words.slice(at));
        break;
      }
      operands.push(word);
      continue;
    }
    const given = word.startsWith('--')
      ? [readLong(word, words[at + 1], defs)]
      : readCluster(word, words[at + 1], defs);
    options.push(...given);
    if (given.at(-1)!.tookNext) at++;
  }
  return { options, operands };
}

type Read<D extends OptionDef> = GivenOption<D> & { readonly tookNext: boolean };

function readLong<D extends OptionDef>(word: string, next: string | undefined, defs: readonly D[]): Read<D> {
  const equals = word.indexOf('=');
  const name = word.slice(2, equals < 0 ? undefined : equals);
  const inWord = equals < 0 ? undefined : word.slice(equals + 1);
  const def = longOption(word, name, defs);
  if (inWord !== undefined) {
    if (!def.argument) throw new OptionError('unwanted', word, `option '--${def.long}' doesn't allow an argument`);
    return { def, value: inWord, spelled: word, tookNext: false };
  }
  if (def.argument !== 'required') return { def, value: undefined, spelled: word, tookNext: false };
  if (next === undefined) throw new OptionError('missing', word, `option '--${def.long}' requires an argument`);
  return { def, value: next, spelled: `${word} ${next}`, tookNext: true };
}

function longOption<D extends OptionDef>(word: string, name: string, defs: readonly D[]): D {
  const exact = defs.find((def) => def.long === name);
  if (exact) return exact;
  const begun = defs.filter((def) => def.long?.startsWith(name));
  if (begun.length === 1) return begun[0]!;
  if (begun.length === 0) throw new OptionError('unknown', word, `unrecognized option '${word}'`);
  const names = begun.map((def) => `'--${def.long}'`).join(' ');
  throw new OptionError('ambiguous', word, `option '${word}' is ambiguous; possibilities: ${names}`);
}

function readCluster<D extends OptionDef>(word: string, next: string | undefined, defs: readonly D[]): Read<D>[] {
  const given: Read<D>[] = [];
  for (let at = 1; at < word.length; at++) {
    const letter = word[at]!;
    const def = defs.find((entry) => entry.short === letter);
    if (!def) throw new OptionError('unknown', `-${letter}`, `invalid option -- '${letter}'`, word);
    const rest = word.slice(at + 1);
    if (!def.argument) {
      given.push({ def, value: undefined, spelled: `-${letter}`, tookNext: false });
      continue;
    }
    if (rest !== '' || def.argument === 'optional') {
      given.push({ def, value: rest === '' ? undefined : rest, spelled: `-${letter}${rest}`, tookNext: false });
      return given;
    }
    if (next === undefined) {
      throw new OptionError('missing', `-${letter}`, `option requires an argument -- '${letter}'`, word);
    }
    given.push({ def, value: next, spelled: `-${letter} ${next}`, tookNext: true });
    return given;
  }
  return given;
}
