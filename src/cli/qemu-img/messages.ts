/** Our errors in the words of qemu-img. */
import { BlockError, errnoText } from '../../base/errors.ts';
import { DEFAULT_PORT } from '../../proto/nbd/constants.ts';
import { HEADER_REASONS } from './header-messages.ts';
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
  if (/'force-share' needs 'read-only'$/.test(why)) return 'force-share=on can only be used with read-only images';
  const option = optionReason(lower.message);
  if (option !== undefined) return option;
  for (const [pattern, text] of [...REASONS, ...HEADER_REASONS]) {
    const match = pattern.exec(why);
    if (match) return text(match, lower.where.path ?? '');
  }
  const server = serverOf(lower.message);
  if (server !== undefined && why === errnoText(error.errno)) return `Failed to connect to '${server}': ${why}`;
  // The system's own words are said of the file that it said them of.
  return why === errnoText(error.errno) ? lower.message : why;
}

export type Reason = readonly [pattern: RegExp, text: (match: RegExpExecArray, path: string) => string];

const REASONS: readonly Reason[] = [
  [
    /^(Failed to get .* lock); is another process using it\?$/,
    ([, what], path) => `${what}\nIs another process using the image [${path}]?`,
  ],
  [/^neither a regular file nor a block device$/, (_, path) => `'file' driver requires '${path}' to be a regular file`],
  [/^Is a directory$/, (_, path) => `'file' driver requires '${path}' to be a regular file`],
  [
    /^Could not open the backing file '(.*)' that '.*' names: (.*)$/s,
    ([, name, what]) => `Could not open backing file: Could not open '${name}': ${what}`,
  ],
  [/^it is encrypted: option 'encrypt.key' is missing$/, () => "Parameter 'encrypt.key-secret' is required for cipher"],
  [/^option '(file|image|test|raw)' is missing$/, ([, name]) => `A block device must be specified for "${name}"`],
  [/^option 'filename' is missing$/, () => "The 'file' block driver requires a file name"],
  [/^(Unknown driver '.*') \(known: .*\)$/s, ([, what]) => what!],
  [/^the file name is empty$/, () => "The 'file' block driver requires a file name"],
];

/** What is said of options of nodes. */
function optionReason(message: string): string | undefined {
  const [, driver, name] = /^Could not open a '(.*)' node: unknown option '(.*)'$/s.exec(message) ?? [];
  if (driver !== undefined) {
    const what = isProtocol(driver) ? `protocol '${driver}' doesn't` : `format '${driver}' does not`;
    return `Block ${what} support the option '${name}'`;
  }
  const [, switched] = /^Could not use the options: '(.*)' is '.*', not on or off$/s.exec(message) ?? [];
  if (switched !== undefined) return `Parameter '${switched}' expects 'on' or 'off'`;
  const [, size] = /^Could not use the options: '(.*)' is '.*', not a size such as/s.exec(message) ?? [];
  return size === undefined ? undefined : sizeParameter(size);
}

export function sizeParameter(name: string): string {
  return (
    `Parameter '${name}' expects a non-negative number below 2^64\n` +
    'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.'
  );
}

/** What the original does not count as protocols: formats, and most filters. */
const NO_PROTOCOLS: ReadonlySet<string> = new Set([
  ...['raw', 'qcow2', 'throttle', 'copy-on-read', 'copy-before-write', 'snapshot-access', 'preallocate', 'compress'],
]);

export function isProtocol(driver: string): boolean {
  return !NO_PROTOCOLS.has(driver);
}

/** The server that a message says could not be reached; undefined for any other message. */
function serverOf(message: string): string | undefined {
  const [, name] = /^Could not open '(nbd.*?)': /.exec(message) ?? [];
  const [, socket] = /^nbd\+unix:\/\/.*[?&]socket=([^&]*)/i.exec(name ?? '') ?? [];
  if (socket !== undefined) return decodeURIComponent(socket);
  const [, host, port] = /^nbd:\/\/([^/:]+|\[[^\]]*\])(?::(\d+))?(?:\/|$)/i.exec(name ?? '') ?? [];
  return host === undefined ? undefined : `${host}:${port ?? DEFAULT_PORT}`;
}
