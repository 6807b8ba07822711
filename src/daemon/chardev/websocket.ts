/**
 * The server's side of a WebSocket [RFC 6455], as far as a conversation needs it: the upgrade of an HTTP connection,
 * and binary frames, in which the bytes of the conversation go on, however they are cut. Faults: a request that is too
 * long, and frames that are not masked, or of a kind that is not spoken here. No more of a frame is kept than its
 * header.
 */
import { createHash } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { Gate } from '../../aio/op.ts';
import { KiB } from '../../base/units.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Framing } from './framing.ts';

const REQUEST_MAX = 4 * KiB;
const CONTROL_MAX = 125;
/** [RFC 6455 1.3] */
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

/** Kinds of frames [RFC 6455 5.2]. */
const CONTINUATION = 0;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

/** Status codes [RFC 6455 7.4.1]. */
const PROTOCOL_ERROR = 1002;
const UNSUPPORTED = 1003;

const FINAL = 0x80;
const RESERVED = 0x70;
const MASKED = 0x80;
const MASK_BYTES = 4;

/** Answers the request that begins the connection. Rejects with QmpError where it is not one for a WebSocket, and has
 *  told the other side so. */
export async function acceptWebSocket(stream: Duplex): Promise<Framing> {
  const [line = '', ...fields] = (await requestOf(stream)).split('\r\n');
  const headers = new Map(fields.map((field) => [nameOf(field), textOf(field)]));
  const listed = (name: string): string[] => (headers.get(name) ?? '').toLowerCase().split(/\s*,\s*/);
  const [method, path, version] = line.split(' ');
  const key = headers.get('sec-websocket-key');
  const named = headers.has('sec-websocket-protocol');
  const upgrade = listed('upgrade').includes('websocket') && listed('connection').includes('upgrade');
  const spoken = !named || listed('sec-websocket-protocol').includes('binary');
  const right = method === 'GET' && version === 'HTTP/1.1' && headers.get('sec-websocket-version') === '13';
  if (!right || !upgrade || !spoken || key === undefined) throw refused(stream, '400 Bad Request');
  if (path !== '/') throw refused(stream, '404 Not Found');
  const accept = createHash('sha1').update(`${key}${GUID}`).digest('base64');
  const answer = [
    ...['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade'],
    `Sec-WebSocket-Accept: ${accept}`,
    ...(named ? ['Sec-WebSocket-Protocol: binary'] : []),
  ];
  stream.write(`${answer.join('\r\n')}\r\n\r\n`);
  return new WebSocketFraming();
}

function refused(stream: Duplex, status: string): QmpError {
  stream.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\n\r\n`);
  return new QmpError(`not a request for a WebSocket: ${status}`);
}

function nameOf(field: string): string {
  return field.slice(0, Math.max(field.indexOf(':'), 0)).toLowerCase();
}

function textOf(field: string): string {
  return field.slice(field.indexOf(':') + 1).trim();
}

/** Reads up to the empty line; what comes behind it is put back. */
async function requestOf(stream: Duplex): Promise<string> {
  const gate = new Gate<string>();
  let got: Uint8Array = new Uint8Array();
  const onData = (bytes: Uint8Array): void => {
    got = joined([got, bytes]);
    // One character for each byte.
    const text = new TextDecoder('latin1').decode(got);
    const end = text.indexOf('\r\n\r\n');
    if (end < 0 && got.length <= REQUEST_MAX) return;
    stream.pause();
    stream.off('data', onData);
    const whole = end >= 0 && end <= REQUEST_MAX;
    if (!whole) gate.fail(refused(stream, '431 Request Header Fields Too Large'));
    else gate.open(text.slice(0, end));
    if (whole && got.length > end + 4) stream.unshift(got.subarray(end + 4));
  };
  const onClose = (): void => {
    if (!gate.opened) gate.fail(new QmpError('the connection has ended in the WebSocket handshake'));
  };
  stream.on('data', onData);
  stream.once('close', onClose);
  stream.resume();
  try {
    return await gate.promise;
  } finally {
    stream.off('close', onClose);
  }
}

export class WebSocketFraming implements Framing {
  /** The beginning of a header or of a control frame. */
  #rest: Uint8Array = new Uint8Array();
  /** Of the frame that its payload belongs to: what is to come, what has come, and the mask. */
  #left = 0;
  #taken = 0;
  #mask: Uint8Array = new Uint8Array();
  #ended = false;

  decode(bytes: Uint8Array, answer: (bytes: Uint8Array) => void, end: () => void): Uint8Array {
    const all = this.#rest.length === 0 ? bytes : joined([this.#rest, bytes]);
    const parts: Uint8Array[] = [];
    let at = 0;
    while (!this.#ended) {
      const payload = this.#unmasked(all.subarray(at));
      parts.push(payload);
      at += payload.length;
      const header = headerAt(all.subarray(at));
      if (header === undefined) break;
      if (typeof header === 'number') this.#close(Uint8Array.of(header >> 8, header & 255), answer, end);
      else at += this.#begin(header, all.subarray(at), answer, end);
    }
    // Copied: what it was cut from is the stream's.
    this.#rest = Uint8Array.from(all.subarray(this.#ended ? all.length : at));
    return joined(parts);
  }

  encode(text: string): Uint8Array {
    return frame(BINARY, new TextEncoder().encode(text));
  }

  /** What of `bytes` belongs to the frame that has begun. */
  #unmasked(bytes: Uint8Array): Uint8Array {
    const payload = bytes.subarray(0, this.#left);
    const [mask, taken] = [this.#mask, this.#taken];
    this.#left -= payload.length;
    this.#taken = (taken + payload.length) % MASK_BYTES;
    return Uint8Array.from(payload, (byte, i) => byte ^ mask[(taken + i) % MASK_BYTES]!);
  }

  /** Answers how many bytes are done with: the header, and all of a control frame. */
  #begin({ kind, length, payloadAt }: Header, bytes: Uint8Array, answer: (bytes: Uint8Array) => void, end: () => void) {
    this.#mask = Uint8Array.from(bytes.subarray(payloadAt - MASK_BYTES, payloadAt));
    this.#taken = 0;
    this.#left = length;
    if (kind < CLOSE) return payloadAt;
    const payload = this.#unmasked(bytes.subarray(payloadAt));
    if (kind === PING) answer(frame(PONG, payload));
    if (kind === CLOSE) this.#close(payload, answer, end);
    return payloadAt + length;
  }

  #close(payload: Uint8Array, answer: (bytes: Uint8Array) => void, end: () => void): void {
    this.#ended = true;
    answer(frame(CLOSE, payload));
    end();
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((bytes, part) => bytes + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

interface Header {
  readonly kind: number;
  readonly length: number;
  readonly payloadAt: number;
}

/** The header at the beginning; undefined where it has not come whole yet, or a control frame has not; a status code
 *  for one that is refused. */
function headerAt(bytes: Uint8Array): Header | number | undefined {
  if (bytes.length < 2) return undefined;
  const kind = bytes[0]! & 15;
  const short = bytes[1]! & 127;
  if ((bytes[0]! & RESERVED) !== 0 || bytes[1]! < MASKED) return PROTOCOL_ERROR;
  if (kind !== CONTINUATION && kind !== BINARY && (kind < CLOSE || kind > PONG)) return UNSUPPORTED;
  if (kind >= CLOSE && (short > CONTROL_MAX || bytes[0]! < FINAL)) return PROTOCOL_ERROR;
  const payloadAt = (short === 127 ? 10 : short === 126 ? 4 : 2) + MASK_BYTES;
  if (bytes.length < payloadAt || (kind >= CLOSE && bytes.length < payloadAt + short)) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const length =
    short === 127 ? view.getUint32(2) * 2 ** 32 + view.getUint32(6) : short === 126 ? view.getUint16(2) : short;
  return { kind, length, payloadAt };
}

/** A whole frame of ours, which has no mask. */
function frame(kind: number, payload: Uint8Array): Uint8Array {
  const { length } = payload;
  const headerBytes = length <= CONTROL_MAX ? 2 : length < 2 ** 16 ? 4 : 10;
  const bytes = new Uint8Array(headerBytes + length);
  const view = new DataView(bytes.buffer);
  bytes[0] = FINAL | kind;
  bytes[1] = headerBytes === 2 ? length : headerBytes === 4 ? 126 : 127;
  if (headerBytes === 4) view.setUint16(2, length);
  else if (headerBytes === 10) view.setUint32(6, length);
  bytes.set(payload, headerBytes);
  return bytes;
}
