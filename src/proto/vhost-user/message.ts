/**
 * Messages of the vhost-user protocol, both directions, without I/O. All of it is little-endian, as the machines that
 * we run on. A message is a header and a payload whose shape its request says; descriptors travel beside it.
 *
 *     0 request u32 | 4 flags u32 (version 1) | 8 payload bytes u32
 */
import { HEADER_BYTES, HeaderFlag, MAX_PAYLOAD_BYTES } from './constants.ts';

const TWO_32 = 0x1_0000_0000;
/** High halves from here on are beyond 2^53-1. */
const HIGH_LIMIT = 0x20_0000;
const REGION_BYTES = 32;

export interface Header {
  readonly request: number;
  readonly flags: number;
  readonly length: number;
}

/** One range of the guest's memory. [A region] */
export interface MemoryRegion {
  /** Where it is for the guest, and for the front-end's process. */
  readonly guest: number;
  readonly user: number;
  readonly length: number;
  /** Where it begins in its descriptor. */
  readonly offset: number;
}

/** [A vring state description] */
export interface VringState {
  readonly index: number;
  readonly value: number;
}

/** Where the parts of a ring are, in the front-end's addresses. [A vring address description] */
export interface VringAddress {
  readonly index: number;
  readonly flags: number;
  readonly descriptors: number;
  readonly used: number;
  readonly available: number;
  /** A guest address. */
  readonly log: number;
}

/** [Inflight description] */
export interface InflightArea {
  readonly length: number;
  readonly offset: number;
  readonly queues: number;
  readonly queueSize: number;
}

/** Part of the configuration space. [Virtio device config space] */
export interface ConfigPart {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
  readonly bytes: Uint8Array;
}

/** [Log description] */
export interface LogArea {
  readonly length: number;
  readonly offset: number;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The u64 at `at`; -1 when it is 2^53 or more. */
function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true);
  return high >= HIGH_LIMIT ? -1 : high * TWO_32 + view.getUint32(at, true);
}

function setU64(view: DataView, at: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  view.setUint32(at, value - high * TWO_32, true);
  view.setUint32(at + 4, high, true);
}

/** The first 12 bytes. */
export function decodeHeader(bytes: Uint8Array): Header {
  const view = viewOf(bytes);
  return { request: view.getUint32(0, true), flags: view.getUint32(4, true), length: view.getUint32(8, true) };
}

/** Why a header cannot be what it should: an answer, or a message that is none. */
export function headerFault({ request, flags, length }: Header, reply: boolean): string | undefined {
  const known = (flags & HeaderFlag.VERSION_MASK) === HeaderFlag.VERSION;
  if (!known || ((flags & HeaderFlag.REPLY) !== 0) !== reply) return `the flags of message ${request} are ${flags}`;
  return length > MAX_PAYLOAD_BYTES ? `the payload of message ${request} has ${length} bytes` : undefined;
}

/** A whole message; `flags` besides the version. */
export function encodeMessage(request: number, payload: Uint8Array = new Uint8Array(0), flags = 0): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = viewOf(bytes);
  view.setUint32(0, request, true);
  view.setUint32(4, HeaderFlag.VERSION + flags, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

// The decoders of payloads answer undefined for one that is too short, or holds a number of 2^53 or more where there
// can be none.

/** A u64 below 2^53. */
export function decodeU64(payload: Uint8Array): number | undefined {
  if (payload.length < 8) return undefined;
  const value = getU64(viewOf(payload), 0);
  return value < 0 ? undefined : value;
}

export function encodeU64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  setU64(viewOf(bytes), 0, value);
  return bytes;
}

/** The halves of a u64 that is a set of bits. */
export function decodeBits(payload: Uint8Array): { readonly low: number; readonly high: number } | undefined {
  if (payload.length < 8) return undefined;
  const view = viewOf(payload);
  return { low: view.getUint32(0, true), high: view.getUint32(4, true) };
}

export function encodeBits(low: number, high: number): Uint8Array {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setUint32(0, low, true);
  viewOf(bytes).setUint32(4, high, true);
  return bytes;
}

export function decodeVringState(payload: Uint8Array): VringState | undefined {
  if (payload.length < 8) return undefined;
  const view = viewOf(payload);
  return { index: view.getUint32(0, true), value: view.getUint32(4, true) };
}

export function encodeVringState({ index, value }: VringState): Uint8Array {
  return encodeBits(index, value);
}

export function decodeVringAddress(payload: Uint8Array): VringAddress | undefined {
  if (payload.length < 40) return undefined;
  const view = viewOf(payload);
  const [descriptors, used, available, log] = [8, 16, 24, 32].map((at) => getU64(view, at)) as [
    number,
    number,
    number,
    number,
  ];
  if (descriptors < 0 || used < 0 || available < 0) return undefined;
  return { index: view.getUint32(0, true), flags: view.getUint32(4, true), descriptors, used, available, log };
}

export function encodeVringAddress(address: VringAddress): Uint8Array {
  const bytes = new Uint8Array(40);
  const view = viewOf(bytes);
  view.setUint32(0, address.index, true);
  view.setUint32(4, address.flags, true);
  setU64(view, 8, address.descriptors);
  setU64(view, 16, address.used);
  setU64(view, 24, address.available);
  setU64(view, 32, address.log);
  return bytes;
}

function decodeRegion(view: DataView, at: number): MemoryRegion | undefined {
  const region = {
    guest: getU64(view, at),
    length: getU64(view, at + 8),
    user: getU64(view, at + 16),
    offset: getU64(view, at + 24),
  };
  return Object.values(region).some((value) => value < 0) ? undefined : region;
}

function encodeRegion(view: DataView, at: number, region: MemoryRegion): void {
  setU64(view, at, region.guest);
  setU64(view, at + 8, region.length);
  setU64(view, at + 16, region.user);
  setU64(view, at + 24, region.offset);
}

/** SET_MEM_TABLE. Undefined also when the payload is not exactly as long as its count says. */
export function decodeMemoryTable(payload: Uint8Array): MemoryRegion[] | undefined {
  if (payload.length < 8) return undefined;
  const view = viewOf(payload);
  const count = view.getUint32(0, true);
  if (payload.length !== 8 + count * REGION_BYTES) return undefined;
  const regions: MemoryRegion[] = [];
  for (let i = 0; i < count; i++) {
    const region = decodeRegion(view, 8 + i * REGION_BYTES);
    if (!region) return undefined;
    regions.push(region);
  }
  return regions;
}

export function encodeMemoryTable(regions: readonly MemoryRegion[]): Uint8Array {
  const bytes = new Uint8Array(8 + regions.length * REGION_BYTES);
  const view = viewOf(bytes);
  view.setUint32(0, regions.length, true);
  for (const [i, region] of regions.entries()) encodeRegion(view, 8 + i * REGION_BYTES, region);
  return bytes;
}

/** ADD_MEM_REG, REM_MEM_REG. */
export function decodeSingleRegion(payload: Uint8Array): MemoryRegion | undefined {
  return payload.length < 8 + REGION_BYTES ? undefined : decodeRegion(viewOf(payload), 8);
}

export function encodeSingleRegion(region: MemoryRegion): Uint8Array {
  const bytes = new Uint8Array(8 + REGION_BYTES);
  encodeRegion(viewOf(bytes), 8, region);
  return bytes;
}

/** GET_CONFIG, SET_CONFIG and the answer. Undefined also when the bytes are not as many as it says. */
export function decodeConfigPart(payload: Uint8Array): ConfigPart | undefined {
  if (payload.length < 12) return undefined;
  const view = viewOf(payload);
  const length = view.getUint32(4, true);
  if (payload.length !== 12 + length) return undefined;
  return { offset: view.getUint32(0, true), length, flags: view.getUint32(8, true), bytes: payload.subarray(12) };
}

export function encodeConfigPart(offset: number, bytes: Uint8Array, flags = 0): Uint8Array {
  const payload = new Uint8Array(12 + bytes.length);
  const view = viewOf(payload);
  view.setUint32(0, offset, true);
  view.setUint32(4, bytes.length, true);
  view.setUint32(8, flags, true);
  payload.set(bytes, 12);
  return payload;
}

export function decodeInflight(payload: Uint8Array): InflightArea | undefined {
  if (payload.length < 20) return undefined;
  const view = viewOf(payload);
  const [length, offset] = [getU64(view, 0), getU64(view, 8)];
  if (length < 0 || offset < 0) return undefined;
  return { length, offset, queues: view.getUint16(16, true), queueSize: view.getUint16(18, true) };
}

/** With the padding that a C structure of it has. */
export function encodeInflight(area: InflightArea): Uint8Array {
  const bytes = new Uint8Array(24);
  const view = viewOf(bytes);
  setU64(view, 0, area.length);
  setU64(view, 8, area.offset);
  view.setUint16(16, area.queues, true);
  view.setUint16(18, area.queueSize, true);
  return bytes;
}

export function decodeLog(payload: Uint8Array): LogArea | undefined {
  if (payload.length < 16) return undefined;
  const view = viewOf(payload);
  const [length, offset] = [getU64(view, 0), getU64(view, 8)];
  return length < 0 || offset < 0 ? undefined : { length, offset };
}

export function encodeLog({ length, offset }: LogArea): Uint8Array {
  const bytes = new Uint8Array(16);
  setU64(viewOf(bytes), 0, length);
  setU64(viewOf(bytes), 8, offset);
  return bytes;
}
