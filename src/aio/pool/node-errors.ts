/** node's errors and callbacks, in the engine's terms. */
import { BlockError, Errno, type ErrorPlace, errnoOf, errnoText } from '../../base/errors.ts';
import { Gate } from '../op.ts';

/** Codes of node's own that mean a system error. */
const NODE_CODES: Readonly<Record<string, number>> = {
  ERR_STREAM_DESTROYED: Errno.EPIPE,
  ERR_STREAM_WRITE_AFTER_END: Errno.EPIPE,
  ERR_STREAM_PREMATURE_CLOSE: Errno.ECONNRESET,
  ERR_SOCKET_CLOSED: Errno.EPIPE,
  ERR_OUT_OF_RANGE: Errno.EINVAL,
  ERR_INVALID_ARG_VALUE: Errno.EINVAL,
};

/** The positive Linux errno of what node threw or passed on. */
export function nodeErrno(error: unknown): number {
  const { code, errno } = error as { code?: unknown; errno?: unknown };
  if (typeof code === 'string') {
    if (Object.hasOwn(Errno, code)) return Errno[code as keyof typeof Errno];
    const known = NODE_CODES[code];
    if (known !== undefined) return known;
  }
  // libuv's numbers are the system's, negated; elsewhere they are other numbers.
  if (process.platform === 'linux' && typeof errno === 'number' && errno < 0 && errno > -4096) return -errno;
  return errnoOf(error);
}

/** "Could not open 'a.img': No such file or directory". */
export function nodeError(error: unknown, what: string, where: ErrorPlace = {}): BlockError {
  const errno = nodeErrno(error);
  return new BlockError(errno, `Could not ${what}: ${errnoText(errno)}`, { where, cause: error });
}

/** Calls a node function that takes a callback; rejects with a BlockError. */
export function call<T>(
  what: string,
  where: ErrorPlace,
  start: (callback: (error: NodeJS.ErrnoException | null | undefined, value?: T) => void) => void,
): Promise<T> {
  const gate = new Gate<T>();
  try {
    start((error, value) => {
      if (error) gate.fail(nodeError(error, what, where));
      else gate.open(value as T);
    });
  } catch (error) {
    gate.fail(nodeError(error, what, where));
  }
  return gate.promise;
}
