/** Commands that are not about the image's bytes. */
import { constants } from 'node:os';
import { coSleep } from '../../aio/co-timeout.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { type Command, Failed } from './command.ts';
import { sizeOf, wholeOf } from './numbers.ts';
import type { Session } from './session.ts';

type Breakpoints = NonNullable<Session['image']['breakpoints']>;

const SIGNAL_MAX = 64;
const NS_PER_MS = 1_000_000;

export const quit: Command = {
  ...{ name: 'quit', alias: 'q', least: 0, most: Number.POSITIVE_INFINITY, withoutFile: true },
  about: 'ends the program',
  run(_, session) {
    session.ended = true;
  },
};

export const sleep: Command = {
  ...{ name: 'sleep', least: 1, most: 1, withoutFile: true },
  about: 'waits for so many milliseconds',
  async run({ operands: [text] }, { context }) {
    const ms = wholeOf(text!);
    if (!(ms <= Number.MAX_SAFE_INTEGER / NS_PER_MS)) throw new Failed(`${text} is not a valid number`);
    await coSleep(context, ms * NS_PER_MS).promise;
  },
};

export const sigraise: Command = {
  ...{ name: 'sigraise', least: 1, most: 1, withoutFile: true },
  form: 'signal',
  about: 'sends the program a signal',
  run({ operands: [text] }) {
    const signal = sizeOf(text!);
    if (signal > SIGNAL_MAX) throw new Failed(`signal argument '${text}' is too large to be a valid signal`);
    process.kill(process.pid, signal);
  },
};

export const abort: Command = {
  ...{ name: 'abort', least: 0, most: 0, withoutFile: true },
  about: 'ends the program as a crash does',
  run() {
    process.kill(process.pid, constants.signals.SIGABRT);
  },
};

/** What a breakpoint's command is about, in words and for the driver. */
interface BreakpointForm {
  readonly name: string;
  readonly form: string;
  readonly about: string;
  /** Of what was to be done, with the first word behind the command. */
  readonly fault: (word: string) => string;
  readonly act: (breakpoints: Breakpoints, words: readonly string[], session: Session) => Promise<void> | void;
}

const breakpoint = ({ name, form, about, fault, act }: BreakpointForm): Command => ({
  ...{ name, form, about, least: form.split(' ').length, most: form.split(' ').length },
  async run({ operands }, session) {
    try {
      const { breakpoints } = session.image;
      // No driver of the image stops requests at events.
      if (!breakpoints) throw new BlockError(Errno.ENOTSUP, 'no breakpoints');
      await act(breakpoints, operands, session);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      throw new Failed(`${fault(operands[0]!)}: ${errnoText(error.errno)}`);
    }
  },
});

export const breakAt = breakpoint({
  ...{ name: 'break', form: 'event tag', about: 'stops the next request at an event' },
  fault: () => 'Could not set breakpoint',
  act: (breakpoints, [event, tag], { terminal }) =>
    breakpoints.set(event!, tag!, (what, which) =>
      terminal.out(`blkdebug: ${what === 'stopped' ? 'Suspended' : 'Resuming'} request '${which}'\n`),
    ),
});
export const removeBreak = breakpoint({
  ...{ name: 'remove_break', form: 'tag', about: 'takes a breakpoint away' },
  fault: (tag) => `Could not remove breakpoint ${tag}`,
  act: (breakpoints, [tag]) => breakpoints.remove(tag!),
});
export const resume = breakpoint({
  ...{ name: 'resume', form: 'tag', about: 'lets a stopped request go on' },
  fault: () => 'Could not resume request',
  act: (breakpoints, [tag]) => breakpoints.resume(tag!),
});
export const waitBreak = breakpoint({
  ...{ name: 'wait_break', form: 'tag', about: 'waits until a request is stopped' },
  fault: (tag) => `Could not wait for breakpoint ${tag}`,
  // Where none is on its way, none will be stopped.
  act: async (breakpoints, [tag], session) => {
    const stopped = await session.whileFlying(breakpoints.stopped(tag!).then(() => true));
    if (!stopped) throw new BlockError(Errno.ENOENT, 'no request is stopped');
  },
});
