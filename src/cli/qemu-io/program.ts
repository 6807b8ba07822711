/**
 * `blockplane qemu-io`, or blockplane called under that name: the options, commands, output and exit codes of Debian's
 * qemu-io 7.2. docs/COMPATIBILITY.md says where it is otherwise.
 */
import type { ObjectStore } from '../../lib/objects/store.ts';
import { type OptionDef, OptionError, readCommandLine } from '../getopt.ts';
import { objectStore } from '../objects.ts';
import { failureText } from '../qemu-img/messages.ts';
import { COMPATIBLE_VERSION, warnOfTrace } from '../qemu-img/standard-options.ts';
import { Option, type Terminal, VerbLine } from '../qemu-img/verb.ts';
import { writeNow } from '../write-now.ts';
import { Failed, Fatal } from './command.ts';
import { OPEN, openHow } from './open-options.ts';

const own = {
  help: { short: 'h', long: 'help' },
  version: { short: 'V', long: 'version' },
  trace: { short: 'T', long: 'trace', argument: 'required' },
  command: { short: 'c', long: 'cmd', argument: 'required' },
  misalign: { short: 'm', long: 'misalign' },
} as const satisfies Readonly<Record<string, OptionDef>>;

const PROGRAM = 'qemu-io';
const PROMPT = `${PROGRAM}> `;

const PROCESS: Terminal = {
  out: (text) => writeNow(1, text),
  err: (text) => writeNow(2, text),
};

export const writesItself = true;

/** Runs a command line without the program's name; answers its exit code. `input`: the next line of a person or a
 *  script, undefined at the end; default: of the standard input. */
export async function run(
  argv: readonly string[],
  terminal: Terminal = PROCESS,
  input?: () => string | undefined,
): Promise<number> {
  try {
    const line = readLine(argv);
    if (line.has(own.version)) {
      terminal.out(`${PROGRAM} version ${COMPATIBLE_VERSION} (blockplane)\n`);
      return 0;
    }
    if (line.has(own.help)) return await usage(terminal, 0);
    if (line.operands.length > 1) return await usage(terminal, 1);
    for (const value of line.values(own.trace)) warnOfTrace(PROGRAM, value, terminal);
    const objects = await objectStore(line.values(Option.object));
    if (typeof objects !== 'string') return await runCommands(line, objects, terminal, input);
    terminal.out(objects);
    return 0;
  } catch (error) {
    if (error instanceof OptionError) {
      terminal.err(`${PROGRAM}: ${error.message}\n`);
      return await usage(terminal, 1);
    }
    terminal.err(
      error instanceof Failed || error instanceof Fatal ? `${error.message}\n` : `${PROGRAM}: ${failureText(error)}\n`,
    );
    return 1;
  }
}

function readLine(argv: readonly string[]): VerbLine {
  const { object, imageOpts, format } = Option;
  return new VerbLine(
    readCommandLine(argv, [object, imageOpts, format, ...Object.values(own), ...Object.values(OPEN)]),
  );
}

async function usage(terminal: Terminal, exitCode: number): Promise<number> {
  const { HELP } = await import('./help.ts');
  terminal.out(HELP);
  return exitCode;
}

async function runCommands(
  line: VerbLine,
  objects: ObjectStore | undefined,
  terminal: Terminal,
  input: (() => string | undefined) | undefined,
): Promise<number> {
  const [name] = line.operands;
  const format = line.value(Option.format);
  const imageOpts = line.has(Option.imageOpts);
  if (imageOpts && format !== undefined) {
    throw new Failed(`${PROGRAM}: --image-opts and -f are mutually exclusive`, 'err');
  }
  const how = openHow(line, imageOpts ? "can't open" : `can't open device ${name}`);
  const [{ withLocalContext }, { Session }, { runLine }] = await Promise.all([
    import('../../lib/local-context.ts'),
    import('./session.ts'),
    import('./commands.ts'),
  ]);
  const lines = line.has(own.command) ? undefined : (input ?? (await import('./input.ts')).standardInput());
  return withLocalContext(async (context) => {
    const session = new Session(context, terminal, objects);
    if (name !== undefined) await session.open({ name, imageOpts, format }, how);
    let failed = false;
    try {
      for (const text of lines ? prompted(terminal, lines) : line.values(own.command)) {
        if (!(await runLine(text, session))) failed = true;
        if (session.ended) break;
      }
    } finally {
      await session.close();
    }
    return failed ? 1 : 0;
  });
}

function* prompted(terminal: Terminal, next: () => string | undefined): Generator<string> {
  for (;;) {
    terminal.out(PROMPT);
    const text = next();
    if (text === undefined) return;
    yield text;
  }
}
