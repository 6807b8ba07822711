/** What the back-end offers, what is taken of it, and what the disk is by its configuration space. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, KiB, MAX_OFFSET, MiB } from '../../base/units.ts';
import { FrontRequest, ProtocolFeature } from '../../proto/vhost-user/constants.ts';
import {
  decodeBits,
  decodeConfigPart,
  decodeU64,
  encodeBits,
  encodeConfigPart,
  encodeU64,
} from '../../proto/vhost-user/message.ts';
import { BLK_CONFIG_BYTES, type BlkConfig, decodeBlkConfig } from '../../proto/virtio-blk/config.ts';
import { BLK_SECTOR, BlkFeature, HighFeature, RingFeature } from '../../proto/virtio-blk/constants.ts';
import type { FrontEnd } from './front-end.ts';
import { QUEUES_MAX, type VhostUserTarget } from './options.ts';

/** Data of one request, and the parts that it is in at most: what a slot's table of descriptors has room for. */
const TRANSFER_MAX: Bytes = MiB;
export const SEGMENTS_MAX = 16;
const BLOCK_MAX: Bytes = 64 * KiB;

/** What the device is. */
export interface DeviceInfo {
  readonly bytes: Bytes;
  readonly blockBytes: Bytes;
  readonly readOnly: boolean;
  readonly flushes: boolean;
  /** Largest request; 0: there are none of the kind. */
  readonly maxTransfer: Bytes;
  readonly maxDiscard: Bytes;
  readonly maxZero: Bytes;
  readonly discardAlignment: Bytes;
  readonly optimal: Bytes;
  /** Of one part of a request. */
  readonly segmentBytes: Bytes;
}

/** What was agreed on. */
export interface Agreement {
  readonly info: DeviceInfo;
  readonly queues: number;
  readonly packed: boolean;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  /** The back-end tells of changes by itself. */
  readonly tells: boolean;
}

function refuse(why: string, errno: number = Errno.EPROTO): BlockError {
  return new BlockError(errno, why);
}

function number(payload: Uint8Array, what: string): number {
  const value = decodeU64(payload);
  if (value === undefined) throw refuse(`its answer to ${what} is no number`);
  return value;
}

function bits(payload: Uint8Array, what: string): { readonly low: number; readonly high: number } {
  const value = decodeBits(payload);
  if (value === undefined) throw refuse(`its answer to ${what} is too short`);
  return value;
}

/** Throws BlockError: ENOTSUP for a back-end that lacks what is needed, EPROTO for one that says what cannot be. */
export async function negotiate(front: FrontEnd, target: VhostUserTarget): Promise<Agreement> {
  const offered = bits(await front.ask(FrontRequest.GET_FEATURES), 'GET_FEATURES');
  if ((offered.high & HighFeature.VERSION_1) === 0) throw refuse('it is older than virtio 1.0', Errno.ENOTSUP);
  if ((offered.low & RingFeature.PROTOCOL_FEATURES) === 0) {
    throw refuse('it has no protocol features', Errno.ENOTSUP);
  }
  const protocol = bits(await front.ask(FrontRequest.GET_PROTOCOL_FEATURES), 'GET_PROTOCOL_FEATURES').low;
  if ((protocol & ProtocolFeature.CONFIG) === 0) throw refuse('it shows no configuration space', Errno.ENOTSUP);
  const { MQ, REPLY_ACK, BACKEND_REQ, CONFIG } = ProtocolFeature;
  await front.tell(FrontRequest.SET_PROTOCOL_FEATURES, encodeU64(protocol & (MQ | REPLY_ACK | BACKEND_REQ | CONFIG)));
  front.acknowledges = (protocol & REPLY_ACK) !== 0;
  await front.tell(FrontRequest.SET_OWNER);
  const queues = (protocol & MQ) === 0 ? 1 : await queuesOf(front, target.queues);
  const config = await readConfig(front);
  const info = infoOf(offered.low, config);
  const low = featuresOf(offered.low, config);
  const packed = target.packed && (offered.high & HighFeature.RING_PACKED) !== 0;
  await front.tell(
    FrontRequest.SET_FEATURES,
    encodeBits(low, HighFeature.VERSION_1 | (packed ? HighFeature.RING_PACKED : 0)),
  );
  return {
    ...{ info, packed, queues: Math.min(queues, config.queues || 1) },
    eventIdx: (low & RingFeature.EVENT_IDX) !== 0,
    indirect: (low & RingFeature.INDIRECT_DESC) !== 0,
    tells: (protocol & BACKEND_REQ) !== 0,
  };
}

async function queuesOf(front: FrontEnd, wanted: number): Promise<number> {
  const count = number(await front.ask(FrontRequest.GET_QUEUE_NUM), 'GET_QUEUE_NUM');
  if (count < 1) throw refuse('it has no queues');
  return Math.min(count, wanted, QUEUES_MAX);
}

/** What is taken of what is offered. SIZE_MAX only where it says something: some back-ends have it, with 0. */
function featuresOf(offered: number, config: BlkConfig): number {
  const { SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES } = BlkFeature;
  const { INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES } = RingFeature;
  const blk = (config.sizeMax > 0 ? SIZE_MAX : 0) | SEG_MAX | RO | BLK_SIZE | FLUSH | TOPOLOGY | MQ;
  return offered & (blk | DISCARD | WRITE_ZEROES | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES);
}

async function readConfig(front: FrontEnd): Promise<BlkConfig> {
  const question = encodeConfigPart(0, new Uint8Array(BLK_CONFIG_BYTES));
  const part = decodeConfigPart(await front.ask(FrontRequest.GET_CONFIG, question));
  if (part === undefined || part.length < BLK_CONFIG_BYTES) throw refuse('its configuration space is too short');
  return decodeBlkConfig(part.bytes);
}

/** The size of the disk as it is now. Throws BlockError. */
export async function readSize(front: FrontEnd, { blockBytes }: DeviceInfo): Promise<Bytes> {
  return sizeOf(await readConfig(front), blockBytes);
}

function sizeOf({ capacity }: BlkConfig, blockBytes: Bytes): Bytes {
  const bytes = capacity * BLK_SECTOR;
  if (capacity < 0 || bytes > MAX_OFFSET) throw refuse('its capacity is beyond 2^53 bytes', Errno.EFBIG);
  return bytes - (bytes % blockBytes);
}

function infoOf(features: number, config: BlkConfig): DeviceInfo {
  const has = (feature: number): boolean => (features & feature) !== 0;
  const blockBytes = has(BlkFeature.BLK_SIZE) ? config.blockBytes : BLK_SECTOR;
  if (!isPowerOfTwo(blockBytes) || blockBytes < BLK_SECTOR || blockBytes > BLOCK_MAX) {
    throw refuse(`its block size, ${blockBytes}, is not a power of two from ${BLK_SECTOR} to ${BLOCK_MAX}`);
  }
  const sizeMax = has(BlkFeature.SIZE_MAX) && config.sizeMax > 0 ? config.sizeMax : TRANSFER_MAX;
  if (sizeMax < blockBytes) throw refuse(`its size_max, ${sizeMax}, is less than a block of ${blockBytes}`);
  const segMax = has(BlkFeature.SEG_MAX) && config.segMax > 0 ? config.segMax : 1;
  const segmentBytes = Math.min(sizeMax - (sizeMax % blockBytes), TRANSFER_MAX);
  const bytesOf = (feature: number, sectors: number): Bytes => {
    if (!has(feature)) return 0;
    const bytes = sectors * BLK_SECTOR;
    return bytes - (bytes % blockBytes);
  };
  const discardAlignment = config.discardAlignmentSectors * BLK_SECTOR;
  return {
    ...{ blockBytes, segmentBytes, bytes: sizeOf(config, blockBytes) },
    readOnly: has(BlkFeature.RO),
    flushes: has(BlkFeature.FLUSH),
    maxTransfer: Math.min(segmentBytes * Math.min(segMax, SEGMENTS_MAX), TRANSFER_MAX),
    maxDiscard: bytesOf(BlkFeature.DISCARD, config.maxDiscardSectors),
    maxZero: bytesOf(BlkFeature.WRITE_ZEROES, config.maxZeroSectors),
    discardAlignment: discardAlignment % blockBytes === 0 ? discardAlignment : 0,
    optimal: has(BlkFeature.TOPOLOGY) ? optimalOf(config, blockBytes) : blockBytes,
  };
}

/** A preference, so what makes no sense is passed over. */
function optimalOf({ optimalBlocks }: BlkConfig, blockBytes: Bytes): Bytes {
  const bytes = optimalBlocks * blockBytes;
  return isPowerOfTwo(bytes) && bytes <= MiB ? Math.max(bytes, blockBytes) : blockBytes;
}

/** Why a device cannot stand in for the one that the node was opened with. */
export function misfit(was: DeviceInfo, is: DeviceInfo): string | undefined {
  if (is.blockBytes > was.blockBytes) return 'its blocks are larger than they were';
  if (is.readOnly && !was.readOnly) return 'it is read-only now';
  const fewer = is.maxDiscard < was.maxDiscard || is.maxZero < was.maxZero || (was.flushes && !is.flushes);
  if (fewer || is.maxTransfer < was.maxTransfer) return 'it can do less than before';
  return undefined;
}
