/** Messages with descriptors, over the front-end's socket. Control path: one at a time, with promises. */
import type { AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { FdStream } from '../../aio/fd-stream.ts';
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { close } from '../../native/file.ts';
import { HEADER_BYTES, HeaderFlag, MAX_MESSAGE_FDS } from '../../proto/vhost-user/constants.ts';
import { decodeHeader, headerFault } from '../../proto/vhost-user/message.ts';

/** A message of the front-end. What {@link take} does not take of its descriptors is closed with {@link drop}. */
export class FrontMessage {
  readonly request: number;
  readonly wantsAnswer: boolean;
  readonly payload: Uint8Array;
  readonly #fds: number[];

  constructor(request: number, flags: number, payload: Uint8Array, fds: readonly number[]) {
    this.request = request;
    this.wantsAnswer = (flags & HeaderFlag.NEED_REPLY) !== 0;
    this.payload = payload;
    this.#fds = [...fds];
  }

  /** Descriptors that nobody has taken. */
  get fds(): readonly number[] {
    return this.#fds;
  }

  /** The first descriptor; the caller's from here on. */
  take(): number {
    const fd = this.#fds.shift();
    if (fd === undefined) throw new BlockError(Errno.EPROTO, 'its descriptor is missing');
    return fd;
  }

  drop(): void {
    for (const fd of this.#fds.splice(0)) close(fd);
  }
}

export class MessageStream {
  readonly #stream: FdStream;

  /** The socket stays the caller's; its shutdown ends what waits here. */
  constructor(context: AioContext, socket: AioSocket) {
    this.#stream = new FdStream(context, socket);
  }

  /** The next message; undefined at the end of the stream. Throws EPROTO for what is none. */
  async receive(): Promise<FrontMessage | undefined> {
    const fds: number[] = [];
    try {
      const head = await this.#stream.read(HEADER_BYTES, fds, MAX_MESSAGE_FDS);
      if (!head) return undefined;
      const header = decodeHeader(head);
      const fault = headerFault(header, false);
      if (fault !== undefined) throw new BlockError(Errno.EPROTO, `Could not read a message: ${fault}`);
      // Descriptors come with the first byte, or not at all.
      const payload = await this.#stream.read(header.length, [], 0);
      return payload && new FrontMessage(header.request, header.flags, payload, fds.splice(0));
    } finally {
      for (const fd of fds) close(fd);
    }
  }

  /** Sends all of it; the descriptors stay the caller's. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    const result = await this.#stream.send(bytes, fds);
    if (result < 0 && result !== -Errno.ECANCELED) {
      throw new BlockError(result, `Could not answer the front-end: ${errnoText(result)}`);
    }
  }
}
