/** Our errors in the words of qemu-nbd. */
import { BlockError, Errno, errnoText } from '../../base/errors.ts';

type Words = readonly [pattern: RegExp, text: (match: RegExpExecArray) => string];

/** Why an image did not open. */
const REASONS: readonly Words[] = [
  [/^Unknown driver '([^']*)'/, ([, driver]) => `Unknown driver '${driver}'`],
  [/: it is not in qcow2 format$/, () => 'Image is not in qcow2 format'],
  [
    /^Could not open '(.*)': (Failed to get .* lock); is another process using it\?$/s,
    ([, path, what]) => `${what}\nIs another process using the image [${path}]?`,
  ],
  [/: the file name is empty$/, () => "The 'file' block driver requires a file name"],
];

const SNAPSHOT: readonly Words[] = [[/ has no snapshot /, () => "Failed to load snapshot: Can't find snapshot"]];

const OFFSET: readonly Words[] = [
  [
    /offset (\d+) is beyond the (\d+) bytes of the file$/,
    ([, offset, size]) => `Offset (${offset}) cannot be greater than size of the containing file (${size})`,
  ],
];

/** What is said when image `name` did not open. */
export function openFailure(name: string, error: unknown): string {
  const message = textOf(error);
  const whole = said([...SNAPSHOT, ...OFFSET], message);
  return whole ?? `Failed to blk_new_open '${name}': ${said(REASONS, message) ?? message}`;
}

interface Place {
  readonly socket?: string | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
}

/** What is said when it cannot be served at a place. */
export function listenFailure({ socket, host, port }: Place, error: unknown): string {
  const errno = error instanceof BlockError ? error.errno : 0;
  const message = textOf(error);
  const bitmap = /bitmap '([^']*)'/.exec(message)?.[1];
  if (bitmap !== undefined && errno === Errno.ENOENT) return `Bitmap '${bitmap}' is not found`;
  if (/: the name is not known$/.test(message)) {
    return `address resolution failed for ${host}:${port}: Name or service not known`;
  }
  if (errno === Errno.EADDRINUSE && host !== undefined) {
    return `Failed to find an available port: ${errnoText(Errno.EADDRINUSE)}`;
  }
  if (socket !== undefined && (errno === Errno.ENOENT || errno === Errno.EACCES)) {
    return `Failed to bind socket to ${socket}: ${errnoText(errno)}`;
  }
  return message;
}

function said(words: readonly Words[], message: string): string | undefined {
  for (const [pattern, text] of words) {
    const match = pattern.exec(message);
    if (match) return text(match);
  }
  return undefined;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
