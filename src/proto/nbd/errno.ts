/** NBD errors and Linux errnos. NBD has eight of them, with Linux numbers; everything else travels as EINVAL or EIO. */
import { Errno } from '../../base/errors.ts';
import { NbdError } from './constants.ts';

/** Disk quota exceeded; to NBD it is ENOSPC, as the specification says. */
const EDQUOT = 122;

/** The NBD error for a Linux errno of either sign; 0 for 0. */
export function toNbdError(errno: number): number {
  switch (Math.abs(errno)) {
    case 0:
      return 0;
    case Errno.EPERM:
    case Errno.EROFS:
    case Errno.EACCES:
      return NbdError.EPERM;
    case Errno.ENOMEM:
      return NbdError.ENOMEM;
    case Errno.EINVAL:
    case Errno.EDOM:
    case Errno.ERANGE:
      return NbdError.EINVAL;
    case Errno.ENOSPC:
    case Errno.EFBIG:
    case EDQUOT:
      return NbdError.ENOSPC;
    case Errno.EOVERFLOW:
      return NbdError.EOVERFLOW;
    case Errno.ENOTSUP:
    case Errno.ENOSYS:
      return NbdError.ENOTSUP;
    case Errno.ESHUTDOWN:
      return NbdError.ESHUTDOWN;
    default:
      return NbdError.EIO;
  }
}

/**
 * The positive Linux errno for an NBD error; an unknown error is EINVAL, as the specification asks of clients. 0 for 0.
 */
export function fromNbdError(error: number): number {
  switch (error) {
    case 0:
      return 0;
    case NbdError.EPERM:
      return Errno.EPERM;
    case NbdError.EIO:
      return Errno.EIO;
    case NbdError.ENOMEM:
      return Errno.ENOMEM;
    case NbdError.ENOSPC:
      return Errno.ENOSPC;
    case NbdError.EOVERFLOW:
      return Errno.EOVERFLOW;
    case NbdError.ENOTSUP:
      return Errno.ENOTSUP;
    case NbdError.ESHUTDOWN:
      return Errno.ESHUTDOWN;
    default:
      return Errno.EINVAL;
  }
}
