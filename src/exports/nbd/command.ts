/** Which requests are legal, and which error an illegal one gets (NBD protocol, "Request types" and "Error values"). */
import { Errno } from '../../base/errors.ts';
import { MAX_OFFSET } from '../../base/units.ts';
import { Command, CommandFlag } from '../../proto/nbd/constants.ts';
import type { Negotiated } from './handshake.ts';
import { contextCount } from './meta-context.ts';
import type { NbdRequest } from './request.ts';

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = CommandFlag;

/** The flags a command may have; a command that is not here is not known. */
const FLAGS: readonly number[] = [];
{
  const flags = FLAGS as number[];
  flags[Command.READ] = FUA | DF;
  flags[Command.WRITE] = FUA | PAYLOAD_LEN;
  flags[Command.FLUSH] = FUA;
  flags[Command.TRIM] = FUA;
  flags[Command.CACHE] = FUA;
  flags[Command.WRITE_ZEROES] = FUA | NO_HOLE | FAST_ZERO;
  flags[Command.BLOCK_STATUS] = FUA | REQ_ONE;
}

/** 0, or the negative errno that `request` gets. `size` is the export's, `maxPayload` the longest read or write. */
export function checkCommand(request: NbdRequest, negotiated: Negotiated, size: number, maxPayload: number): number {
  const { command, commandFlags, offset, length } = request;
  const allowed = FLAGS[command];
  if (allowed === undefined || (commandFlags & ~allowed) !== 0) return -Errno.EINVAL;
  if ((commandFlags & DF) !== 0 && !negotiated.structured) return -Errno.EINVAL;
  if (((commandFlags & PAYLOAD_LEN) !== 0) !== (negotiated.extended && command === Command.WRITE)) return -Errno.EINVAL;
  if (command === Command.FLUSH) return offset === 0 && length === 0 ? 0 : -Errno.EINVAL;
  const writes = command === Command.WRITE || command === Command.WRITE_ZEROES || command === Command.TRIM;
  if (writes && !negotiated.export.writable) return -Errno.EPERM;
  if (command === Command.READ || command === Command.WRITE) {
    const tooLong = command === Command.READ && negotiated.structured ? -Errno.EOVERFLOW : -Errno.EINVAL;
    if (length < 0 || length > maxPayload) return tooLong;
  }
  if (command === Command.BLOCK_STATUS && (contextCount(negotiated.contexts) === 0 || length === 0))
    return -Errno.EINVAL;
  if (offset < 0 || length < 0 || offset > MAX_OFFSET - length || offset + length > size) {
    return command === Command.WRITE || command === Command.WRITE_ZEROES ? -Errno.ENOSPC : -Errno.EINVAL;
  }
  return 0;
}
