/** All commands, and how a line becomes a call of one. */
import { BlockError } from '../../base/errors.ts';
import { OptionError, readCommandLine } from '../getopt.ts';
import { VerbLine } from '../qemu-img/verb.ts';
import { type Command, Failed, formOf, Misused } from './command.ts';
import * as image from './image-commands.ts';
import * as other from './other-commands.ts';
import * as requests from './requests.ts';
import type { Session } from './session.ts';

const help: Command = {
  ...{ name: 'help', alias: '?', form: '[command]', least: 0, most: 1, withoutFile: true },
  about: 'shows what commands there are, or the form of one',
  run({ operands: [name] }, { terminal }) {
    if (name === undefined) {
      terminal.out(
        `${COMMANDS.map((command) => formOf(command)).join('')}\nUse 'help commandname' for extended help.\n`,
      );
      return;
    }
    const command = commandOf(name);
    if (!command) throw new Failed(`command ${name} not found`);
    terminal.out(formOf(command, name));
  },
};

const COMMANDS: readonly Command[] = [
  ...[...Object.values(image), ...Object.values(other), ...Object.values(requests), help],
].sort((a, b) => (a.name < b.name ? -1 : 1));

function commandOf(name: string): Command | undefined {
  return COMMANDS.find((command) => command.name === name || command.alias === name);
}

/** Runs a line; answers whether the command did what it was to do. */
export async function runLine(text: string, session: Session): Promise<boolean> {
  const [name, ...words] = text.split(' ').filter((word) => word !== '');
  if (name === undefined) return true;
  const command = commandOf(name);
  try {
    if (!command) throw new Failed(`command "${name}" not found`, 'err');
    assertFits(command, name, words, session);
    await command.run(lineOf(command, words), session);
    return true;
  } catch (error) {
    if (error instanceof OptionError) session.terminal.err(`${name}: ${error.message}\n`);
    if (error instanceof OptionError || error instanceof Misused) session.terminal.out(formOf(command!));
    else if (error instanceof Failed) tell(error, session);
    else if (error instanceof BlockError) session.terminal.err(`qemu-io: ${error.message}\n`);
    else throw error;
    return false;
  }
}

function tell({ message, stream }: Failed, { terminal }: Session): void {
  if (message !== '') terminal[stream](`${message}\n`);
}

function assertFits(command: Command, name: string, words: readonly string[], session: Session): void {
  const { least, most, withoutFile, writes } = command;
  if (!withoutFile && !session.isOpen) throw new Failed("no file open, try 'help open'", 'err');
  if (words.length < least || words.length > most) {
    const expected =
      most === Number.POSITIVE_INFINITY
        ? `at least ${least}`
        : least === most
          ? `${least}`
          : `between ${least} and ${most}`;
    throw new Failed(`bad argument count ${words.length} to ${name}, expected ${expected} arguments`, 'err');
  }
  if (writes && session.image.readOnly) throw new Failed('qemu-io: Block node is read-only', 'err');
}

function lineOf({ options }: Command, words: readonly string[]): VerbLine {
  return new VerbLine(options ? readCommandLine(words, options) : { options: [], operands: words });
}
