/**
 * The server's side of the handshake: fixed newstyle, from the greeting to the transmission phase (NBD protocol,
 * section "Newstyle negotiation" and "Option types"). One coroutine; whatever the client does, it ends: options, bytes
 * and time are bounded, and a shutdown of the socket ends each of its waits.
 */
import type { AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { SocketStream } from '../../aio/socket-stream.ts';
import { assert } from '../../base/assert.ts';
import { BlockError } from '../../base/errors.ts';
import type { Memory } from '../../base/memory.ts';
import { type Bytes, KiB } from '../../base/units.ts';
import {
  HandshakeFlag,
  Info,
  MAX_STRING,
  OPTION_HEADER_SIZE,
  OPTION_REPLY_HEADER_SIZE,
  Option,
  OptionReply,
} from '../../proto/nbd/constants.ts';
import {
  decodeExportName,
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoText,
  encodeMetaContext,
  encodeOptionReply,
  encodeServer,
  encodeString,
  type InfoRequest,
  type Malformed,
} from '../../proto/nbd/option.ts';
import {
  blockSizes,
  type ExportDirectory,
  exportSize,
  type HandedOver,
  type NbdExport,
  transmissionFlags,
} from './export-list.ts';
import type { NbdLimits } from './limits.ts';
import { activeContexts, NO_CONTEXTS, selectContexts } from './meta-context.ts';

/** What a handshake that led to the transmission phase has settled. */
export interface Negotiated extends HandedOver {
  readonly export: NbdExport;
}

/** What a connection may do about TLS. */
export interface TlsPolicy {
  /** No export is shown, and nothing else answered, without it. */
  readonly required: boolean;
  /** Begins it on the handshake's socket; rejects with BlockError. */
  start(): Promise<void>;
}

/** A handshake that led nowhere. */
export interface HandshakeEnd {
  /** For people: the end of a sentence that begins with the peer. */
  readonly ended: string;
}

/** The send buffer holds at least one of the longest replies: a SERVER reply with name and description. */
const SEND_SIZE = 16 * KiB;
assert(SEND_SIZE >= OPTION_REPLY_HEADER_SIZE + 4 + 2 * MAX_STRING, 'the send buffer holds no SERVER reply');

/** How large a memory a handshake needs to receive messages of `longest` bytes. */
export function handshakeMemorySize(longest: Bytes): Bytes {
  return longest + SEND_SIZE;
}

/** The longest message a handshake receives at once. */
export function longestHandshakeMessage(limits: NbdLimits): number {
  return OPTION_HEADER_SIZE + limits.maxOptionBytes;
}

/**
 * Runs the handshake on `socket`. `memory`: `handshakeMemorySize(longestHandshakeMessage(limits))` bytes, free again
 * once the promise has settled. When it has, no operation is pending on the socket, which stays open. Without `tls`
 * there is none to be had.
 */
export async function handshake(
  context: AioContext,
  socket: AioSocket,
  memory: Memory,
  exports: ExportDirectory,
  limits: NbdLimits,
  tls?: TlsPolicy,
): Promise<Negotiated | HandshakeEnd> {
  const stream = new SocketStream(socket, memory, SEND_SIZE, 'the client has left');
  const deadline = context.timer(() => {
    stream.ended ??= 'the handshake took too long';
    socket.shutdown();
  }, 'nbd handshake deadline');
  if (limits.handshakeNs > 0) deadline.armIn(limits.handshakeNs);
  try {
    return await new Handshake(stream, exports, limits, tls).run();
  } finally {
    deadline.cancel();
  }
}

/** What an option leads to: the next one, the transmission phase, or the end. */
type Step = 'next' | 'end' | Negotiated;

class Handshake {
  readonly #stream: SocketStream;
  readonly #exports: ExportDirectory;
  readonly #limits: NbdLimits;
  readonly #tls: TlsPolicy | undefined;
  #secure = false;
  #fixed = false;
  #noZeroes = false;
  #structured = false;
  #extended = false;
  #contexts = NO_CONTEXTS;
  /** The export that the contexts were chosen for. */
  #contextsFor = '';

  constructor(stream: SocketStream, exports: ExportDirectory, limits: NbdLimits, tls: TlsPolicy | undefined) {
    this.#stream = stream;
    this.#exports = exports;
    this.#limits = limits;
    this.#tls = tls;
  }

  async run(): Promise<Negotiated | HandshakeEnd> {
    const result = await this.#options();
    return result ?? { ended: this.#stream.ended ?? 'the handshake failed' };
  }

  /** Undefined when the connection is to be closed; the stream then says why. */
  async #options(): Promise<Negotiated | undefined> {
    const stream = this.#stream;
    if (!(await stream.send(encodeGreeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)))) return undefined;
    if (!(await stream.need(4))) return undefined;
    if (!this.#clientFlags(stream.take(4))) return undefined;
    const budget = this.#limits.maxOptions + this.#limits.optionsPerExport * this.#exports.count;
    for (let count = 0; ; count++) {
      if (!(await stream.need(OPTION_HEADER_SIZE))) return undefined;
      if (count >= budget) return this.#fail(`it sent more than ${budget} options`);
      const bytes = stream.take(OPTION_HEADER_SIZE);
      const header = decodeOptionHeader(new DataView(bytes.buffer), 0);
      if (!header) return this.#fail('an option began with a wrong magic number');
      const { option, length } = header;
      if (!this.#fixed && option !== Option.EXPORT_NAME) return this.#fail(`it sent option ${option} in the old style`);
      const step = await this.#read(option, length);
      if (step === 'end') return undefined;
      // A shutdown may have come while everything needed was in the buffer already.
      if (stream.ended !== undefined) return undefined;
      if (step !== 'next') return step;
    }
  }

  #fail(why: string): undefined {
    this.#stream.ended ??= why;
    return undefined;
  }

  #clientFlags(bytes: Uint8Array): boolean {
    const flags = new DataView(bytes.buffer).getUint32(0);
    if ((flags & ~(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)) !== 0) {
      this.#fail(`it sent unknown client flags 0x${flags.toString(16)}`);
      return false;
    }
    this.#fixed = (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0;
    return true;
  }

  /** Reads the payload of an option and answers it. */
  async #read(option: number, length: number): Promise<Step> {
    const stream = this.#stream;
    if (stream.received + length > this.#limits.maxHandshakeBytes) {
      this.#fail(`it sent more than ${this.#limits.maxHandshakeBytes} bytes of options`);
      return 'end';
    }
    if (length > this.#limits.maxOptionBytes) {
      // EXPORT_NAME has no error reply: the connection is all there is to close.
      if (option === Option.EXPORT_NAME) {
        this.#fail('it sent an export name that is too long');
        return 'end';
      }
      if (!(await stream.skip(length))) return 'end';
      return this.#refuse(option, OptionReply.ERR_TOO_BIG, `The payload has ${length} bytes`);
    }
    if (!(await stream.need(length))) return 'end';
    return this.#answer(option, stream.take(length));
  }

  async #answer(option: number, payload: Uint8Array): Promise<Step> {
    if (this.#tls?.required && !this.#secure && option !== Option.STARTTLS && option !== Option.ABORT) {
      return this.#wantTls(option);
    }
    switch (option) {
      case Option.EXPORT_NAME:
        return this.#exportName(payload);
      case Option.ABORT:
        await this.#stream.send(encodeOptionReply(option, OptionReply.ACK));
        await this.#stream.flush();
        this.#fail('it aborted the handshake');
        return 'end';
      case Option.LIST:
        return payload.length > 0 ? this.#refuseData(option) : this.#list(option);
      case Option.STARTTLS:
        return payload.length > 0 ? this.#refuseData(option) : this.#startTls(option);
      case Option.INFO:
      case Option.GO:
        return this.#info(option, payload);
      case Option.STRUCTURED_REPLY:
      case Option.EXTENDED_HEADERS:
        return payload.length > 0 ? this.#refuseData(option) : this.#replies(option);
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        return this.#metaContext(option, payload);
      default:
        return this.#refuse(option, OptionReply.ERR_UNSUP, `Option ${option} is not known here`);
    }
  }

  async #reply(option: number, type: number, payload?: Uint8Array): Promise<Step> {
    return (await this.#stream.send(encodeOptionReply(option, type, payload))) ? 'next' : 'end';
  }

  /** An error reply. `text` never holds what the client sent: it would grow past the limit of a string (2020-10761). */
  #refuse(option: number, type: number, text: string): Promise<Step> {
    return this.#reply(option, type, encodeString(text));
  }

  #refuseData(option: number): Promise<Step> {
    return this.#refuse(option, OptionReply.ERR_INVALID, `Option ${option} takes no data`);
  }

  #refuseMalformed(option: number, why: Malformed): Promise<Step> {
    if (why === 'too-big') return this.#refuse(option, OptionReply.ERR_TOO_BIG, 'A string has more than 4096 bytes');
    return this.#refuse(option, OptionReply.ERR_INVALID, 'The payload is malformed');
  }

  async #wantTls(option: number): Promise<Step> {
    if (option !== Option.EXPORT_NAME) {
      return this.#refuse(option, OptionReply.ERR_TLS_REQD, 'This server is used with TLS only');
    }
    this.#fail('it asked for an export without TLS');
    return 'end';
  }

  /** What was said in plain text may have been said by anybody: nothing of it counts any more (2021-3716). */
  async #startTls(option: number): Promise<Step> {
    const stream = this.#stream;
    if (this.#secure) return this.#refuse(option, OptionReply.ERR_INVALID, 'TLS is in use already');
    if (!this.#tls) return this.#refuse(option, OptionReply.ERR_UNSUP, 'This server is not set up for TLS');
    if (stream.rest().length > 0) {
      this.#fail('it did not wait for the answer to STARTTLS');
      return 'end';
    }
    await stream.send(encodeOptionReply(option, OptionReply.ACK));
    if (!(await stream.flush())) return 'end';
    try {
      await this.#tls.start();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#fail(error.message);
      return 'end';
    }
    this.#secure = true;
    this.#structured = false;
    this.#extended = false;
    this.#contexts = NO_CONTEXTS;
    this.#contextsFor = '';
    return 'next';
  }

  async #exportName(payload: Uint8Array): Promise<Step> {
    if (this.#extended) {
      this.#fail('it sent EXPORT_NAME after EXTENDED_HEADERS');
      return 'end';
    }
    const name = decodeExportName(payload);
    const found = name === undefined ? undefined : this.#exports.find(name);
    if (!found) {
      this.#fail('it asked for an export that is not there');
      return 'end';
    }
    const flags = transmissionFlags(found, this.#structured);
    const sent = await this.#stream.send(encodeExportNameReply(exportSize(found), flags, this.#noZeroes));
    return sent ? this.#enter(found) : 'end';
  }

  async #list(option: number): Promise<Step> {
    // A copy: exports may come and go while replies are being sent.
    for (const { name, description } of [...this.#exports.list()]) {
      const sent = await this.#reply(option, OptionReply.SERVER, encodeServer(name, description));
      if (sent === 'end') return 'end';
    }
    return this.#reply(option, OptionReply.ACK);
  }

  async #info(option: number, payload: Uint8Array): Promise<Step> {
    const request = decodeInfoRequest(payload);
    if (typeof request === 'string') return this.#refuseMalformed(option, request);
    const found = this.#exports.find(request.name);
    if (!found) return this.#refuse(option, OptionReply.ERR_UNKNOWN, 'There is no export of this name');
    for (const info of this.#infos(request, found)) {
      if ((await this.#reply(option, OptionReply.INFO, info)) === 'end') return 'end';
    }
    if ((await this.#reply(option, OptionReply.ACK)) === 'end') return 'end';
    return option === Option.GO ? this.#enter(found) : 'next';
  }

  /** EXPORT and BLOCK_SIZE always; the others when they are asked for. EXPORT comes last, as old clients expect. */
  #infos(request: InfoRequest, found: NbdExport): readonly Uint8Array[] {
    const infos: Uint8Array[] = [];
    if (request.infos.includes(Info.NAME)) infos.push(encodeInfoText(Info.NAME, found.name));
    if (request.infos.includes(Info.DESCRIPTION) && found.description !== '') {
      infos.push(encodeInfoText(Info.DESCRIPTION, found.description));
    }
    const sizes = blockSizes(found, this.#limits.maxPayload);
    infos.push(encodeInfoBlockSize(sizes.minimum, sizes.preferred, sizes.maximum));
    infos.push(encodeInfoExport(exportSize(found), transmissionFlags(found, this.#structured)));
    return infos;
  }

  #replies(option: number): Promise<Step> {
    if (option === Option.STRUCTURED_REPLY && this.#extended) {
      return this.#refuse(option, OptionReply.ERR_EXT_HEADER_REQD, 'Extended headers are in use already');
    }
    if (option === Option.STRUCTURED_REPLY ? this.#structured : this.#extended) {
      return this.#refuse(option, OptionReply.ERR_INVALID, 'This was agreed already');
    }
    this.#structured = true;
    if (option === Option.EXTENDED_HEADERS) this.#extended = true;
    return this.#reply(option, OptionReply.ACK);
  }

  async #metaContext(option: number, payload: Uint8Array): Promise<Step> {
    const choosing = option === Option.SET_META_CONTEXT;
    // Whatever comes of it, it replaces what was chosen before.
    if (choosing) this.#contexts = NO_CONTEXTS;
    const request = decodeMetaContextRequest(payload);
    if (typeof request === 'string') return this.#refuseMalformed(option, request);
    if (choosing && !this.#structured) {
      return this.#refuse(option, OptionReply.ERR_INVALID, 'Structured replies come first');
    }
    const found = this.#exports.find(request.name);
    if (!found) return this.#refuse(option, OptionReply.ERR_UNKNOWN, 'There is no export of this name');
    const entries = selectContexts(request.queries, !choosing, found);
    if (!entries) return this.#refuse(option, OptionReply.ERR_INVALID, 'A query has no namespace');
    if (choosing) {
      this.#contexts = activeContexts(entries);
      this.#contextsFor = request.name;
    }
    for (const { name, id } of entries) {
      const entry = encodeMetaContext(choosing ? id : 0, name);
      if ((await this.#reply(option, OptionReply.META_CONTEXT, entry)) === 'end') return 'end';
    }
    return this.#reply(option, OptionReply.ACK);
  }

  /** Ends the handshake in the transmission phase. */
  async #enter(found: NbdExport): Promise<Step> {
    if (!(await this.#stream.flush())) return 'end';
    return {
      exportName: found.name,
      export: found,
      structured: this.#structured,
      extended: this.#extended,
      contexts: this.#contextsFor === found.name ? this.#contexts : NO_CONTEXTS,
      buffered: this.#stream.rest(),
    };
  }
}
