/**
 * The client's side of the handshake: fixed newstyle, from the greeting to the transmission phase. One coroutine;
 * whatever the server does, it ends: replies and their bytes are counted, and a shutdown of the socket ends each wait.
 */
import type { SocketStream } from '../../aio/socket-stream.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, KiB } from '../../base/units.ts';
import {
  EXPORT_NAME_PADDING,
  Info,
  MAX_PAYLOAD,
  Option,
  OptionReply,
  TransmissionFlag,
} from '../../proto/nbd/constants.ts';
import {
  decodeInfo,
  decodeMetaContext,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeString,
} from '../../proto/nbd/option.ts';
import { getU64 } from '../../proto/nbd/words.ts';
import { OptionTalk, protocolError, refusal, type StartTls, textOf } from './option-talk.ts';

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

/** Throws BlockError whose message is why, for the end of a sentence that names the server. With `startTls` nothing is
 *  asked of the server before TLS, and there is no connection without it. */
export function handshake(stream: SocketStream, wish: HandshakeWish, startTls?: StartTls): Promise<ServerInfo> {
  return new Handshake(stream, wish).run(startTls);
}

class Handshake {
  readonly #stream: SocketStream;
  readonly #talk: OptionTalk;
  readonly #wish: HandshakeWish;
  #structured = false;
  #extended = false;
  #contextId = -1;

  constructor(stream: SocketStream, wish: HandshakeWish) {
    this.#stream = stream;
    this.#talk = new OptionTalk(stream);
    this.#wish = wish;
  }

  async run(startTls: StartTls | undefined): Promise<ServerInfo> {
    const fixed = await this.#talk.greet();
    if (startTls) await this.#talk.secure(fixed, startTls);
    if (!fixed) return await this.#exportName();
    this.#extended = await this.#talk.agree(Option.EXTENDED_HEADERS);
    this.#structured = this.#extended || (await this.#talk.agree(Option.STRUCTURED_REPLY));
    if (this.#structured) await this.#setContext();
    return (await this.#go()) ?? (await this.#exportName());
  }

  async #setContext(): Promise<void> {
    const { exportName, context } = this.#wish;
    await this.#talk.send(encodeOption(Option.SET_META_CONTEXT, encodeMetaContextRequest(exportName, [context])));
    for (let replies = 0; ; replies++) {
      const { type, payload } = await this.#talk.reply(Option.SET_META_CONTEXT);
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
    await this.#talk.send(encodeOption(Option.GO, encodeInfoRequest(this.#wish.exportName, [Info.BLOCK_SIZE])));
    let about: { readonly size: number; readonly flags: number } | undefined;
    let blocks: Blocks | undefined;
    for (let replies = 0; ; replies++) {
      const { type, payload } = await this.#talk.reply(Option.GO);
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
    await this.#talk.send(encodeOption(Option.EXPORT_NAME, encodeString(this.#wish.exportName)));
    await this.#talk.need(10 + (this.#talk.noZeroes ? 0 : EXPORT_NAME_PADDING));
    const bytes = this.#stream.take(10 + (this.#talk.noZeroes ? 0 : EXPORT_NAME_PADDING));
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
