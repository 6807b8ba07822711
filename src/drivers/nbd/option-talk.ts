/**
 * The client's side of option haggling: options and their replies, one after the other. Whatever the server does, it
 * ends: replies are bounded, and a shutdown of the socket ends each wait. Errors are BlockErrors whose message is why,
 * for the end of a sentence that names the server.
 */
import type { SocketStream } from '../../aio/socket-stream.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, KiB } from '../../base/units.ts';
import {
  GREETING_SIZE,
  HandshakeFlag,
  MAX_STRING,
  OPTION_REPLY_HEADER_SIZE,
  Option,
  OptionReply,
} from '../../proto/nbd/constants.ts';
import {
  decodeGreeting,
  decodeOptionReplyHeader,
  decodeString,
  encodeClientFlags,
  encodeOption,
} from '../../proto/nbd/option.ts';

/** What the stream's memory is made of: the longest reply (a name and what is about it), the longest option. */
export const HANDSHAKE_RECEIVE = 12 * KiB;
export const HANDSHAKE_SEND = 12 * KiB;
/** A reply's payload: none has more than two strings. */
const REPLY_BYTES_MAX = 2 * MAX_STRING + 16;

/** Begins TLS on the stream's socket; rejects with BlockError, whose message is like {@link handshake}'s. */
export type StartTls = () => Promise<void>;

/** For tests and messages: the server broke the protocol, or is not what it should be. */
export function protocolError(why: string): BlockError {
  return new BlockError(Errno.EPROTO, why);
}

export interface Reply {
  readonly type: number;
  readonly payload: Uint8Array;
}

export class OptionTalk {
  readonly #stream: SocketStream;
  /** The answer to EXPORT_NAME has no padding. */
  noZeroes = false;

  constructor(stream: SocketStream) {
    this.#stream = stream;
  }

  /** Whoever stands in between can say no to TLS: then there is no connection. */
  async secure(fixed: boolean, startTls: StartTls): Promise<void> {
    if (!fixed) throw new BlockError(Errno.EACCES, 'it does not have TLS, which was asked for');
    await this.send(encodeOption(Option.STARTTLS));
    const { type, payload } = await this.reply(Option.STARTTLS);
    if (type >= OptionReply.ERR_UNSUP && type !== OptionReply.ERR_SHUTDOWN) {
      throw new BlockError(Errno.EACCES, `it does not have TLS, which was asked for${textOf(payload)}`);
    }
    if (type !== OptionReply.ACK) throw refusal(type, textOf(payload));
    // Plain text behind the answer would be read as if it had come by TLS.
    if (this.#stream.rest().length > 0) throw protocolError('it says more than it was asked');
    await startTls();
  }

  /** True when the server knows that options may be unknown to it. */
  async greet(): Promise<boolean> {
    await this.need(GREETING_SIZE);
    const greeting = this.#stream.take(GREETING_SIZE);
    const flags = decodeGreeting(greeting);
    if (flags === undefined) {
      throw protocolError('it is no NBD server, or one that speaks the old style of the protocol only');
    }
    const fixed = (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0;
    this.noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0;
    await this.send(encodeClientFlags(flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)));
    return fixed;
  }

  /** Asks for something that is on or off. */
  async agree(option: number): Promise<boolean> {
    await this.send(encodeOption(option));
    const { type } = await this.reply(option);
    if (type === OptionReply.ACK) return true;
    if (type < OptionReply.ERR_UNSUP) throw protocolError(`its reply to option ${option} is of type ${type}`);
    if (type === OptionReply.ERR_TLS_REQD || type === OptionReply.ERR_SHUTDOWN) throw refusal(type, '');
    return false;
  }

  /** The next reply, which has to be to `option`. */
  async reply(option: number): Promise<Reply> {
    await this.need(OPTION_REPLY_HEADER_SIZE);
    const bytes = this.#stream.take(OPTION_REPLY_HEADER_SIZE);
    const header = decodeOptionReplyHeader(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 0);
    if (header === undefined) throw protocolError('its reply to an option begins with a wrong number');
    if (header.option !== option) throw protocolError(`it replies to option ${header.option}, and not to ${option}`);
    if (header.length > REPLY_BYTES_MAX)
      throw protocolError(`its reply to option ${option} has ${header.length} bytes`);
    await this.need(header.length);
    return { type: header.type, payload: this.#stream.take(header.length) };
  }

  /** Waits until that many bytes are there. */
  async need(length: Bytes): Promise<void> {
    if (!(await this.#stream.need(length))) throw this.#ended();
  }

  /** Queues an option, or what it takes. */
  async send(bytes: Uint8Array): Promise<void> {
    if (!(await this.#stream.send(bytes))) throw this.#ended();
  }

  #ended(): BlockError {
    return new BlockError(Errno.ECONNRESET, this.#stream.ended ?? 'the connection has ended');
  }
}

/** A server's own words, for a terminal. */
export function textOf(payload: Uint8Array): string {
  const text = (decodeString(payload.subarray(0, 256)) ?? '').replace(/\p{C}/gu, '?');
  return text === '' ? '' : ` ('${text}')`;
}

/** What a reply that is an error says. */
export function refusal(type: number, text: string): BlockError {
  switch (type) {
    case OptionReply.ERR_POLICY:
      return new BlockError(Errno.EACCES, `it does not allow it${text}`);
    case OptionReply.ERR_TLS_REQD:
      return new BlockError(Errno.EACCES, `it wants TLS, and no credentials for that were given${text}`);
    case OptionReply.ERR_UNKNOWN:
      return new BlockError(Errno.ENOENT, `it has no such export${text}`);
    case OptionReply.ERR_SHUTDOWN:
      return new BlockError(Errno.ESHUTDOWN, `it is about to end${text}`);
    case OptionReply.ERR_BLOCK_SIZE_REQD:
      return new BlockError(Errno.EINVAL, `it has block sizes that it does not say${text}`);
    default:
      return new BlockError(Errno.EINVAL, `it refuses with 0x${type.toString(16)}${text}`);
  }
}
