/**
 * The client's side of the handshake: fixed newstyle, from the greeting to the transmission phase. One coroutine;
 * whatever the server does, it ends: replies and their bytes are counted, and a shutdown of the socket ends each wait.
 */
import type { SocketStream } from '../../aio/socket-stream.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, KiB } from '../../base/units.ts';
import {
  EXPORT_NAME_PADDING,
  GREETING_SIZE,
  HandshakeFlag,
  Info,
  MAX_PAYLOAD,
  MAX_STRING,
  OPTION_REPLY_HEADER_SIZE,
  Option,
  OptionReply,
  TransmissionFlag,
} from '../../proto/nbd/constants.ts';
import {
  decodeGreeting,
  decodeInfo,
  decodeMetaContext,
  decodeOptionReplyHeader,
  decodeString,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeString,
} from '../../proto/nbd/option.ts';
import { getU64 } from '../../proto/nbd/words.ts';

/** What the stream's memory is made of: the longest reply (a name and what is about it), the longest option. */
export const HANDSHAKE_RECEIVE = 8 * KiB;
export const HANDSHAKE_SEND = 12 * KiB;
/** A reply's payload; none has more than one string that matters. */
const REPLY_BYTES_MAX = MAX_STRING + 16;
/** Replies to one option. */
const REPLIES_MAX = 64;
/** The largest smallest block that is believed [NBD: Block size constraints]. */
const MIN_BLOCK_MAX = 64 * KiB;

/** What a server offers and the handshake has settled. */
export interface ServerInfo {
  readonly size: Bytes;
  /** TransmissionFlag. */
  readonly flags: number;
  readonly minBlock: Bytes;
  readonly preferred: Bytes;
  readonly maxPayload: Bytes;
  /** True as well with {@link extended}. */
  readonly structured: boolean;
  /** 32-byte headers. */
  readonly extended: boolean;
  /** The number of the one meta context that was asked for; -1 where the server does not have it. */
  readonly contextId: number;
}

export interface HandshakeWish {
  readonly exportName: string;
  /** The meta context that block status is asked for. */
  readonly context: string;
}

/** Begins TLS on the stream's socket; rejects with BlockError, whose message is like {@link handshake}'s. */
export type StartTls = () => Promise<void>;

/** For tests and messages: the server broke the protocol, or is not what it should be. */
export function protocolError(why: string): BlockError {
  return new BlockError(Errno.EPROTO, why);
}

/** Throws BlockError whose message is why, for the end of a sentence that names the server. With `startTls` nothing is
 *  asked of the server before TLS, and there is no connection without it. */
export function handshake(stream: SocketStream, wish: HandshakeWish, startTls?: StartTls): Promise<ServerInfo> {
  return new Handshake(stream, wish).run(startTls);
}

interface Reply {
  readonly type: number;
  readonly payload: Uint8Array;
}

class Handshake {
  readonly #stream: SocketStream;
  readonly #wish: HandshakeWish;
  #structured = false;
  #extended = false;
  #contextId = -1;
  #noZeroes = false;

  constructor(stream: SocketStream, wish: HandshakeWish) {
    this.#stream = stream;
    this.#wish = wish;
  }

  async run(startTls: StartTls | undefined): Promise<ServerInfo> {
    const fixed = await this.#greet();
    if (startTls) await this.#secure(fixed, startTls);
    if (!fixed) return await this.#exportName();
    this.#extended = await this.#agree(Option.EXTENDED_HEADERS);
    this.#structured = this.#extended || (await this.#agree(Option.STRUCTURED_REPLY));
    if (this.#structured) await this.#setContext();
    return (await this.#go()) ?? (await this.#exportName());
  }

  /** Whoever stands in between can say no to TLS: then there is no connection. */
  async #secure(fixed: boolean, startTls: StartTls): Promise<void> {
    if (!fixed) throw new BlockError(Errno.EACCES, 'it does not have TLS, which was asked for');
    await this.#send(encodeOption(Option.STARTTLS));
    const { type, payload } = await this.#reply(Option.STARTTLS);
    if (type >= OptionReply.ERR_UNSUP && type !== OptionReply.ERR_SHUTDOWN) {
      throw new BlockError(Errno.EACCES, `it does not have TLS, which was asked for${textOf(payload)}`);
    }
    if (type !== OptionReply.ACK) throw refusal(type, textOf(payload));
    // Plain text behind the answer would be read as if it had come by TLS.
    if (this.#stream.rest().length > 0) throw protocolError('it says more than it was asked');
    await startTls();
  }

  /** True when the server knows that options may be unknown to it. */
  async #greet(): Promise<boolean> {
    await this.#need(GREETING_SIZE);
    const greeting = this.#stream.take(GREETING_SIZE);
    const flags = decodeGreeting(greeting);
    if (flags === undefined) {
      throw protocolError('it is no NBD server, or one that speaks the old style of the protocol only');
    }
    const fixed = (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0;
    await this.#send(encodeClientFlags(flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)));
    return fixed;
  }

  /** Asks for something that is on or off. */
  async #agree(option: number): Promise<boolean> {
    await this.#send(encodeOption(option));
    const { type } = await this.#reply(option);
    if (type === OptionReply.ACK) return true;
    if (type < OptionReply.ERR_UNSUP) throw protocolError(`its reply to option ${option} is of type ${type}`);
    if (type === OptionReply.ERR_TLS_REQD || type === OptionReply.ERR_SHUTDOWN) throw refusal(type, '');
    return false;
  }

  async #setContext(): Promise<void> {
    const { exportName, context } = this.#wish;
    await this.#send(encodeOption(Option.SET_META_CONTEXT, encodeMetaContextRequest(exportName, [context])));
    for (let replies = 0; ; replies++) {
      const { type, payload } = await this.#reply(Option.SET_META_CONTEXT);
      if (type === OptionReply.ACK) return;
      // Whatever is wrong with the export, GO says it better.
      if (type >= OptionReply.ERR_UNSUP) return;
      const found = type === OptionReply.META_CONTEXT ? decodeMetaContext(payload) : undefined;
      if (found === undefined || found.name !== context || this.#contextId >= 0) {
        throw protocolError('its answer about meta contexts is not one');
      }
      if (replies >= REPLIES_MAX) throw protocolError('it answers without end');
      this.#contextId = found.id;
    }
  }

  /** Undefined where the server does not know the option. */
  async #go(): Promise<ServerInfo | undefined> {
    await this.#send(encodeOption(Option.GO, encodeInfoRequest(this.#wish.exportName, [Info.BLOCK_SIZE])));
    let about: { readonly size: number; readonly flags: number } | undefined;
    let blocks: Blocks | undefined;
    for (let replies = 0; ; replies++) {
      const { type, payload } = await this.#reply(Option.GO);
      if (type === OptionReply.ERR_UNSUP) return undefined;
      if (type >= OptionReply.ERR_UNSUP) throw refusal(type, textOf(payload));
      if (type === OptionReply.ACK) break;
      const info = type === OptionReply.INFO ? decodeInfo(payload) : undefined;
      if (info === undefined) throw protocolError('its answer about the export is not one');
      if (replies >= REPLIES_MAX) throw protocolError('it answers without end');
      if (info.type === 'export') about = info;
      if (info.type === 'block-size') blocks = info;
    }
    if (about === undefined) throw protocolError('it does not say how large the export is');
    return this.#settled(about.size, about.flags, blocks);
  }

  /** How servers of long ago are asked: they end the connection when there is no such export. */
  async #exportName(): Promise<ServerInfo> {
    await this.#send(encodeOption(Option.EXPORT_NAME, encodeString(this.#wish.exportName)));
    await this.#need(10 + (this.#noZeroes ? 0 : EXPORT_NAME_PADDING));
    const bytes = this.#stream.take(10 + (this.#noZeroes ? 0 : EXPORT_NAME_PADDING));
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return this.#settled(getU64(view, 0), view.getUint16(8), undefined);
  }

  #settled(size: number, flags: number, blocks: Blocks | undefined): ServerInfo {
    if (size < 0) throw new BlockError(Errno.EFBIG, 'its export is larger than 2^53-1 bytes');
    if ((flags & TransmissionFlag.HAS_FLAGS) === 0) throw protocolError('the flags of its export are not valid');
    if (this.#stream.rest().length > 0) throw protocolError('it says more than it was asked');
    return {
      ...{ size, flags, ...blockSizes(size, blocks) },
      ...{ structured: this.#structured, extended: this.#extended, contextId: this.#contextId },
    };
  }

  async #reply(option: number): Promise<Reply> {
    await this.#need(OPTION_REPLY_HEADER_SIZE);
    const bytes = this.#stream.take(OPTION_REPLY_HEADER_SIZE);
    const header = decodeOptionReplyHeader(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 0);
    if (header === undefined) throw protocolError('its reply to an option begins with a wrong number');
    if (header.option !== option) throw protocolError(`it replies to option ${header.option}, and not to ${option}`);
    if (header.length > REPLY_BYTES_MAX)
      throw protocolError(`its reply to option ${option} has ${header.length} bytes`);
    await this.#need(header.length);
    return { type: header.type, payload: this.#stream.take(header.length) };
  }

  async #need(length: Bytes): Promise<void> {
    if (!(await this.#stream.need(length))) throw this.#ended();
  }

  async #send(bytes: Uint8Array): Promise<void> {
    if (!(await this.#stream.send(bytes))) throw this.#ended();
  }

  #ended(): BlockError {
    return new BlockError(Errno.ECONNRESET, this.#stream.ended ?? 'the connection has ended');
  }
}

interface Blocks {
  readonly minimum: Bytes;
  readonly preferred: Bytes;
  readonly maximum: Bytes;
}

/** What requests have to keep to. Throws where that makes no sense. */
function blockSizes(
  size: Bytes,
  blocks: Blocks | undefined,
): Pick<ServerInfo, 'minBlock' | 'preferred' | 'maxPayload'> {
  // Not said: 512 is what every server takes, where the size allows it.
  const { minimum, preferred, maximum } = blocks ?? {
    minimum: size % 512 === 0 ? 512 : 1,
    preferred: 4 * KiB,
    maximum: MAX_PAYLOAD,
  };
  if (!isPowerOfTwo(minimum) || minimum > MIN_BLOCK_MAX) throw protocolError(`its smallest block has ${minimum} bytes`);
  if (size % minimum !== 0)
    throw protocolError(`its size, ${size}, is not a multiple of its smallest block, ${minimum}`);
  if (maximum < minimum) throw protocolError(`its longest request has ${maximum} bytes, less than its smallest block`);
  const most = Math.min(maximum, MAX_PAYLOAD);
  const sensible = isPowerOfTwo(preferred) && preferred >= minimum && preferred <= MAX_PAYLOAD;
  return {
    minBlock: minimum,
    preferred: sensible ? preferred : Math.max(minimum, 4 * KiB),
    maxPayload: most - (most % minimum),
  };
}

/** A server's own words, for a terminal. */
function textOf(payload: Uint8Array): string {
  const text = (decodeString(payload.subarray(0, 256)) ?? '').replace(/\p{C}/gu, '?');
  return text === '' ? '' : ` ('${text}')`;
}

function refusal(type: number, text: string): BlockError {
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
