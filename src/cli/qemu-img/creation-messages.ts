/** Why an image was not made, in the words of qemu-img. */
import { BlockError, Errno } from '../../base/errors.ts';
import { failureText, openReason } from './messages.ts';

export function creationReason(error: unknown): string {
  if (!(error instanceof BlockError)) return failureText(error);
  if (error.where.op === 'open' && error.where.path !== undefined && error.cause instanceof BlockError) {
    return `${openReason(error)}\nCould not open backing image.`;
  }
  const lock = /^Could not open '(.*)': (Failed to get .* lock); is another process using it\?$/s.exec(error.message);
  if (lock) return `${lock[2]}\nIs another process using the image [${lock[1]}]?`;
  const { path } = error.where;
  if (error.errno === Errno.EISDIR && path !== undefined) return `Could not create '${path}': Is a directory`;
  for (const [pattern, text] of REASONS) {
    const match = pattern.exec(error.message);
    if (match) return text(match);
  }
  return failureText(error);
}

const REASONS: readonly (readonly [pattern: RegExp, text: (match: RegExpExecArray) => string])[] = [
  [/'cluster-size' is \d+, not a power of two/, () => 'Cluster size must be a power of two between 512 and 2048k'],
  [
    /'refcount-bits' is \d+, not a power of two/,
    () => 'Refcount width must be a power of two and may not exceed 64 bits',
  ],
  [
    /'extended-l2' needs a 'cluster-size'/,
    () => 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes',
  ],
  [
    /'lazy-refcounts' needs 'compat'/,
    () => 'Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)',
  ],
  [
    /'refcount-bits' \d+ needs 'compat'/,
    () => 'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)',
  ],
  [
    /'compression-type' zstd needs 'compat'/,
    () =>
      'Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)',
  ],
  [/'data-file-raw' needs 'data-file'/, () => 'data-file-raw requires data-file'],
  [
    /'data-file-raw' and 'backing-file' exclude/,
    () => 'Backing file and data-file-raw cannot be used at the same time',
  ],
  [
    /'preallocation' and 'backing-file' go together/,
    () => 'Backing file and preallocation can only be used at the same time if extended_l2 is on',
  ],
  [/'backing-fmt' needs 'backing-file'/, () => 'Backing format cannot be used without backing file'],
  [/'encrypt.format' needs 'encrypt.key'/, () => "Parameter 'encrypt.key-secret' is required for cipher"],
  [/'encrypt\..*' needs 'encrypt.format'/, () => "Parameter 'encrypt.format' is missing"],
  [/option 'compat' is '(.*)', not one of/, ([, value]) => notAccepted('version', value!)],
  [
    /'raw' image: option 'preallocation' is '(metadata)', not/,
    ([, value]) => `Unsupported preallocation mode: ${value}`,
  ],
  [/'raw' image: option 'preallocation' is '(.*)', not/, ([, value]) => `invalid parameter value: ${value}`],
  [/option '(?:encrypt\.)?([\w-]+)' is '(.*)', not one of/, ([, name, value]) => notAccepted(name!, value!)],
  [/'size' is [\d.e+]+; it must be less than 2\^53/, () => TOO_LARGE],
  [/'size' is [\d.e+]+, not a number of bytes up to/, () => TOO_LARGE],
  [
    /^Could not open '(.*)': (Failed to get .* lock); is another process using it\?$/s,
    ([, path, what]) => `${what}\nIs another process using the image [${path}]?`,
  ],
  [/'backing-file' is an empty name/, () => 'Expected backing file name, got empty string'],
];

const TOO_LARGE = "The image size is too large for file format 'qcow2' (try using a larger cluster size)";

function notAccepted(name: string, value: string): string {
  return `Parameter '${name}' does not accept value '${value}'`;
}
