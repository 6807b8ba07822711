/** Our errors in the words of qemu-img. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { Failure } from './verb.ts';

/** What is printed behind the program's name for something that was thrown. */
export function failureText(error: unknown): string {
  if (error instanceof Failure) return error.message;
  if (!(error instanceof BlockError)) return error instanceof Error ? error.message : String(error);
  return error.where.op === 'open' && error.where.path !== undefined
    ? `Could not open '${error.where.path}': ${openReason(error)}`
    : error.message;
}

/** Why an image did not open, without its own name in front. */
export function openReason(error: BlockError): string {
  const lower = error.cause instanceof BlockError ? error.cause : error;
  const why = error.message.slice(`Could not open '${error.where.path}': `.length);
  for (const [pattern, text] of REASONS) {
    const match = pattern.exec(why);
    if (match) return text(match, lower.where.path ?? '');
  }
  // The system's own words are said of the file that it said them of.
  return why === errnoText(error.errno) ? lower.message : why;
}

type Reason = readonly [pattern: RegExp, text: (match: RegExpExecArray, path: string) => string];

const REASONS: readonly Reason[] = [
  [
    /^(Failed to get .* lock); is another process using it\?$/,
    ([, what], path) => `${what}\nIs another process using the image [${path}]?`,
  ],
  [/^neither a regular file nor a block device$/, (_, path) => `'file' driver requires '${path}' to be a regular file`],
  [/^Is a directory$/, (_, path) => `'file' driver requires '${path}' to be a regular file`],
  [/^the file name is empty$/, () => "The 'file' block driver requires a file name"],
];
