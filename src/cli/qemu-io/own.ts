/** `blockplane io`: qemu-io under blockplane's name. */
import { writeNow } from '../write-now.ts';
import { run as runNamed } from './program.ts';

export const writesItself = true;

const own = (text: string): string => text.replaceAll(/^qemu-io(?=[:>])/gm, 'blockplane io');

export function run(argv: readonly string[]): Promise<number> {
  return runNamed(argv, {
    out: (text) => writeNow(1, own(text)),
    err: (text) => writeNow(2, own(text)),
  });
}
