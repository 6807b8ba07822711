/**
 * `blockplane qemu-img`, or blockplane called under that name: the verbs, options, output and exit codes of Debian's
 * qemu-img 7.2. docs/COMPATIBILITY.md says where it is otherwise.
 */

import { formatToMake } from '../../lib/options.ts';
import { type CommandLine, type OptionDef, OptionError, readCommandLine } from '../getopt.ts';
import { objectStore } from '../objects.ts';
import { writeNow } from '../write-now.ts';
import { failureText } from './messages.ts';
import { COMPATIBLE_VERSION, warnOfTrace } from './standard-options.ts';
import { Failure, Misuse, Option, type Terminal, type Verb, VerbLine } from './verb.ts';

export const VERBS: Readonly<Record<string, () => Promise<Verb>>> = {
  amend: async () => (await import('./amend.ts')).amend,
  bitmap: async () => (await import('./bitmap.ts')).bitmap,
  bench: async () => (await import('./bench.ts')).bench,
  check: async () => (await import('./check.ts')).check,
  commit: async () => (await import('./commit.ts')).commit,
  compare: async () => (await import('./compare.ts')).compare,
  convert: async () => (await import('./convert.ts')).convert,
  create: async () => (await import('./create.ts')).create,
  dd: async () => (await import('./dd.ts')).dd,
  info: async () => (await import('./info.ts')).info,
  map: async () => (await import('./map.ts')).map,
  measure: async () => (await import('./measure.ts')).measure,
  rebase: async () => (await import('./rebase.ts')).rebase,
  resize: async () => (await import('./resize.ts')).resize,
  snapshot: async () => (await import('./snapshot.ts')).snapshot,
};

const HELP: OptionDef = { short: 'h', long: 'help' };
const VERSION: OptionDef = { short: 'V', long: 'version' };
const TRACE: OptionDef = { short: 'T', long: 'trace', argument: 'required' };
const GLOBAL = [HELP, VERSION, TRACE];

const PROGRAM = 'qemu-img';
const OWN = 'blockplane';
const TRY_HELP = `Try '${PROGRAM} --help' for more information\n`;

const PROCESS: Terminal = {
  out: (text) => writeNow(1, text),
  err: (text) => writeNow(2, text),
};

export const writesItself = true;

/** The verbs as blockplane's own: what they print is under its name. */
export const ownVerbs = {
  writesItself,
  run: (argv: readonly string[]): Promise<number> =>
    run(argv, {
      out: (text) => PROCESS.out(text.replace(`usage: ${PROGRAM}`, `usage: ${OWN}`)),
      err: (text) =>
        PROCESS.err(
          text
            .replaceAll(new RegExp(`^${PROGRAM}:`, 'gm'), `${OWN}:`)
            .replace(TRY_HELP, `Try '${OWN} ${argv[0]} --help' for more information\n`),
        ),
      formatOfNew: formatToMake,
    }),
};

/** Runs a command line without the program's name; answers its exit code. */
export async function run(argv: readonly string[], terminal: Terminal = PROCESS): Promise<number> {
  try {
    return await dispatch(argv, terminal);
  } catch (error) {
    if (error instanceof Misuse) {
      terminal.err(`${PROGRAM}: ${error.message}\n${TRY_HELP}`);
      return 1;
    }
    terminal.err(`${PROGRAM}: ${failureText(error)}${error instanceof Failure ? error.end : '\n'}`);
    return error instanceof Failure ? error.exitCode : 1;
  }
}

async function dispatch(argv: readonly string[], terminal: Terminal): Promise<number> {
  const { options, operands } = read(argv, GLOBAL, true);
  for (const { def } of options) {
    if (def === HELP) return help(terminal);
    if (def === VERSION) {
      terminal.out(versionText());
      return 0;
    }
  }
  for (const { value } of options) warnOfTrace(PROGRAM, value ?? '', terminal);
  const [name, ...words] = operands;
  if (name === undefined) throw new Misuse('Not enough arguments');
  if (!Object.hasOwn(VERBS, name)) throw new Misuse(`Command not found: ${name}`);
  const verb = await VERBS[name]!();
  if (verb.lastWord !== undefined && words.length < 2 && !words.some((word) => word === '-h' || word === '--help')) {
    throw new Misuse(verb.lastWord);
  }
  const lastWord = verb.lastWord === undefined ? undefined : words.pop();
  const line = read(words, [HELP, ...verb.options], false);
  if (line.options.some(({ def }) => def === HELP)) {
    terminal.out((await import('./verb-help.ts')).verbHelp(PROGRAM, name, verb));
    return 0;
  }
  const texts = line.options.flatMap(({ def, value }) => (def === Option.object ? [value!] : []));
  const objects = await objectStore(texts).catch((error: unknown) => {
    throw new Failure(failureText(error), verb.objectExit ?? 1);
  });
  if (typeof objects !== 'string') return await verb.run(new VerbLine(line, objects, lastWord), terminal);
  terminal.out(objects);
  return 0;
}

function read<D extends OptionDef>(
  words: readonly string[],
  defs: readonly D[],
  operandsLast: boolean,
): CommandLine<D> {
  try {
    return readCommandLine(words, defs, { operandsLast });
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    const what = error.fault === 'missing' ? 'missing argument for option' : 'unrecognized option';
    throw new Misuse(`${what} '${error.whole}'`);
  }
}

function versionText(): string {
  return `${PROGRAM} version ${COMPATIBLE_VERSION} (blockplane)\n`;
}

async function help(terminal: Terminal): Promise<number> {
  const { helpText } = await import('./help.ts');
  terminal.out(versionText() + helpText(Object.keys(VERBS)));
  return 0;
}
