import { BlockError, Errno, errnoText } from '../base/errors.ts';

/** Why an open file does not become direct, or buffered: see AioFile.setDirect. `result`: a negative errno. */
export function directRefusal(path: string, direct: boolean, result: number): BlockError {
  const why = result === -Errno.EINVAL ? 'its file system has no direct I/O' : errnoText(result);
  const what = direct ? 'bypass' : 'use';
  return new BlockError(result, `Could not ${what} the page cache for '${path}': ${why}`, {
    where: { path, op: 'direct' },
  });
}
