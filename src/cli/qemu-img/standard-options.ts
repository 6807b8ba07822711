/** What the image programs have in common. */
import type { Terminal } from './verb.ts';

/** What scripts look for to know which options there are. */
export const COMPATIBLE_VERSION = '7.2.22';

/** There are no trace events here to be switched on. */
export function warnOfTrace(program: string, value: string, terminal: Terminal): void {
  const [, pattern] = /^(?:enable=)?([^=,]+)$/.exec(value.split(',', 1)[0] ?? '') ?? [];
  if (pattern !== undefined) terminal.err(`${program}: warning: trace event '${pattern}' does not exist\n`);
}
