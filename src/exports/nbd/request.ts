/** A client's request from its header to the end of its reply; pooled by its connection. */
import { RequestFlags } from '../../block/driver.ts';
import { BlockRequest, RequestKind } from '../../block/request.ts';
import { CommandFlag } from '../../proto/nbd/constants.ts';

/** Room for a reply's header, and for the text of an error. */
export const HEADER_ROOM = 128;

export interface RequestOwner {
  /** The request has ended with 0 or a negative errno: reply to it. */
  requestDone(request: NbdRequest, error: number): void;
  /** The request has become another one: submit it. */
  submitAgain(request: NbdRequest): void;
}

export class NbdRequest extends BlockRequest {
  readonly owner: RequestOwner;
  /** Where its reply's header goes, in the connection's header memory. */
  readonly headerAt: number;
  command = 0;
  commandFlags = 0;
  cookieHi = 0;
  cookieLo = 0;
  /** As the client sent it, for replies that repeat it. */
  offset = 0;
  /** Its block of the byte budget; `blockLength` 0 without one. */
  blockAt = 0;
  blockLength = 0;
  /** The receive chunk that its payload is in, -1 for none. */
  chunk = -1;
  /** What the reply carries. */
  headerLength = 0;
  payloadLength = 0;
  error = 0;

  constructor(owner: RequestOwner, headerAt: number) {
    super();
    this.owner = owner;
    this.headerAt = headerAt;
  }

  override done(error: number): void {
    if (error === 0 && this.kind === RequestKind.DISCARD && (this.commandFlags & CommandFlag.FUA) !== 0) {
      // A discard that has to be on stable storage is a discard and a flush.
      this.kind = RequestKind.FLUSH;
      this.flags = 0;
      this.owner.submitAgain(this);
      return;
    }
    this.owner.requestDone(this, error);
  }

  /** The block layer's flags for the command's. */
  setFlags(zeroes: boolean): void {
    let flags = 0;
    if ((this.commandFlags & CommandFlag.FUA) !== 0) flags |= RequestFlags.FUA;
    if (zeroes) {
      if ((this.commandFlags & CommandFlag.NO_HOLE) === 0) flags |= RequestFlags.MAY_UNMAP;
      if ((this.commandFlags & CommandFlag.FAST_ZERO) !== 0) flags |= RequestFlags.NO_FALLBACK;
    }
    this.flags = flags;
  }
}
