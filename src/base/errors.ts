/**
 * Errors. The hot paths carry negative Linux errno numbers, as system calls do; the API carries {@link BlockError}.
 * An expected refusal ("unsupported") is a value on the way down and becomes an error only where a caller asked for it.
 */

/** Linux errno numbers; they are also what travels between our threads and, translated, over NBD. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EPIPE: 32,
  EDOM: 33,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOSYS: 38,
  ELOOP: 40,
  ETIME: 62,
  EPROTO: 71,
  EOVERFLOW: 75,
  ENOTSOCK: 88,
  EMSGSIZE: 90,
  ENOTSUP: 95,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  EISCONN: 106,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EALREADY: 114,
  EINPROGRESS: 115,
  ESTALE: 116,
  ENOMEDIUM: 123,
  ECANCELED: 125,
} as const;

export type ErrnoName = keyof typeof Errno;

const NAMES = new Map<number, ErrnoName>(Object.entries(Errno).map(([name, value]) => [value, name as ErrnoName]));

const TEXTS: Partial<Record<ErrnoName, string>> = {
  EPERM: 'Operation not permitted',
  ENOENT: 'No such file or directory',
  EINTR: 'Interrupted system call',
  EIO: 'Input/output error',
  ENXIO: 'No such device or address',
  EBADF: 'Bad file descriptor',
  EAGAIN: 'Resource temporarily unavailable',
  ENOMEM: 'Cannot allocate memory',
  EACCES: 'Permission denied',
  EFAULT: 'Bad address',
  EBUSY: 'Device or resource busy',
  EEXIST: 'File exists',
  ENODEV: 'No such device',
  ENOTDIR: 'Not a directory',
  EISDIR: 'Is a directory',
  EINVAL: 'Invalid argument',
  EMFILE: 'Too many open files',
  ENOTTY: 'Inappropriate ioctl for device',
  EFBIG: 'File too large',
  ENOSPC: 'No space left on device',
  EROFS: 'Read-only file system',
  EPIPE: 'Broken pipe',
  EDEADLK: 'Resource deadlock avoided',
  ENAMETOOLONG: 'File name too long',
  ELOOP: 'Too many levels of symbolic links',
  EOVERFLOW: 'Value too large for defined data type',
  ENOTSOCK: 'Socket operation on non-socket',
  EMSGSIZE: 'Message too long',
  ENOTSUP: 'Operation not supported',
  EAFNOSUPPORT: 'Address family not supported by protocol',
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  ECONNRESET: 'Connection reset by peer',
  ESHUTDOWN: 'Cannot send after transport endpoint shutdown',
  ETIMEDOUT: 'Connection timed out',
  ECONNREFUSED: 'Connection refused',
  EALREADY: 'Operation already in progress',
  ESTALE: 'Stale file handle',
  ENOMEDIUM: 'No medium found',
  ECANCELED: 'Operation canceled',
};

/** 'EIO' for 5 or -5; `E<number>` for a number that has no name here. */
export function errnoName(errno: number): string {
  return NAMES.get(Math.abs(errno)) ?? `E${Math.abs(errno)}`;
}

/** What strerror() says, for messages. */
export function errnoText(errno: number): string {
  const name = NAMES.get(Math.abs(errno));
  return (name && TEXTS[name]) ?? `Unknown error ${Math.abs(errno)}`;
}

/** Where an error happened, as far as it is known. Offsets and lengths in bytes. */
export interface ErrorPlace {
  readonly node?: string;
  readonly op?: string;
  readonly at?: number;
  readonly length?: number;
  readonly path?: string;
}

export interface BlockErrorOptions {
  readonly where?: ErrorPlace;
  readonly cause?: unknown;
}

/** What crosses between threads instead of an Error (structured clone drops custom fields). */
export interface PlainError {
  readonly errno: number;
  readonly message: string;
  readonly where?: ErrorPlace;
}

/**
 * The one error of the public API. `code` is stable ('EIO', 'ENOSPC', ...), `errno` the positive Linux number,
 * `where` says what was being done. The message is a sentence for people and is not stable.
 */
export class BlockError extends Error {
  override readonly name = 'BlockError';
  readonly code: string;
  readonly errno: number;
  readonly where: ErrorPlace;

  constructor(errno: number, message: string, options: BlockErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.errno = Math.abs(errno);
    this.code = errnoName(errno);
    this.where = options.where ?? {};
  }

  toPlain(): PlainError {
    return { errno: this.errno, message: this.message, where: this.where };
  }

  static fromPlain(plain: PlainError): BlockError {
    return new BlockError(plain.errno, plain.message, plain.where ? { where: plain.where } : {});
  }
}

/** A {@link BlockError} for a failed operation: "Could not read 512 bytes at 0: Input/output error". */
export function ioError(errno: number, what: string, where: ErrorPlace = {}): BlockError {
  return new BlockError(errno, `${what}: ${errnoText(errno)}`, { where });
}

/** The positive errno that stands for anything thrown: its own where it has one, EIO otherwise. */
export function errnoOf(error: unknown): number {
  if (error instanceof BlockError) return error.errno;
  const code = (error as { code?: unknown } | null)?.code;
  if (typeof code === 'string' && Object.hasOwn(Errno, code)) return Errno[code as ErrnoName];
  return Errno.EIO;
}
