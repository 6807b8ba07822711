/** Looking for damage in an image, and repairing it. */
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { CheckFix, CheckResult, Child } from '../../block/driver.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';

/** What is looked at: no request is in flight on it, and nothing of it is cached and dirty. */
export interface CheckTarget {
  readonly aio: AioContext;
  readonly file: Child;
  readonly dataFile: Child | null;
  /** Changed where a repair changes it. */
  readonly header: Qcow2Header;
  readonly readOnly: boolean;
}

export async function checkImage(_target: CheckTarget, _fix: CheckFix): Promise<CheckResult> {
  throw new BlockError(Errno.ENOTSUP, 'Could not check the image: not supported yet');
}
