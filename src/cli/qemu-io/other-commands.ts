/** Commands that are not about the image's bytes. */
import { constants } from 'node:os';
import { coSleep } from '../../aio/co-timeout.ts';
import { type Command, Failed } from './command.ts';
import { sizeOf, wholeOf } from './numbers.ts';

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

/** No driver here stops requests at events. */
const breakpoint = (name: string, form: string, about: string, fault: (word: string) => string): Command => ({
  ...{ name, form, about, least: form.split(' ').length, most: form.split(' ').length },
  run({ operands }) {
    throw new Failed(`${fault(operands[0]!)}: Operation not supported`);
  },
});

export const breakAt = breakpoint('break', 'event tag', 'stops the next request at an event', () => {
  return 'Could not set breakpoint';
});
export const removeBreak = breakpoint('remove_break', 'tag', 'takes a breakpoint away', (tag) => {
  return `Could not remove breakpoint ${tag}`;
});
export const resume = breakpoint('resume', 'tag', 'lets a stopped request go on', () => 'Could not resume request');
export const waitBreak = breakpoint('wait_break', 'tag', 'waits until a request is stopped', (tag) => {
  return `Could not wait for breakpoint ${tag}`;
});
