/** What the device offers, and its configuration space. */

import { type Bytes, KiB } from '../../base/units.ts';
import type { Limits } from '../../block/driver.ts';
import { ProtocolFeature } from '../../proto/vhost-user/constants.ts';
import { type BlkConfig, encodeBlkConfig } from '../../proto/virtio-blk/config.ts';
import { BLK_SECTOR, BlkFeature, HighFeature, RingFeature } from '../../proto/virtio-blk/constants.ts';
import { MAX_RANGE_SECTORS } from './request.ts';

/** Segments in a request that fit, with header and status, in a queue of 128: the smallest that anybody makes. */
const SEG_MAX = 126;
/** With {@link SEG_MAX} a little less than the longest chain. Guests cut their requests by it. */
const SIZE_MAX: Bytes = 256 * KiB;
/** As much as a front-end may ask for; what is beyond our fields reads as zeroes. */
export const CONFIG_SPACE_BYTES = 256;

/** The two words of features. */
export function offeredFeatures(writable: boolean): { readonly low: number; readonly high: number } {
  const { SIZE_MAX: sizeMax, SEG_MAX: segMax, BLK_SIZE, TOPOLOGY, FLUSH, CONFIG_WCE, MQ } = BlkFeature;
  const { LOG_ALL, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES } = RingFeature;
  const device = sizeMax | segMax | BLK_SIZE | TOPOLOGY | FLUSH | CONFIG_WCE | MQ;
  const access = writable ? BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES : BlkFeature.RO;
  return {
    low: device | access | LOG_ALL | INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES,
    high: HighFeature.VERSION_1 | HighFeature.RING_PACKED,
  };
}

export const PROTOCOL_FEATURES =
  ProtocolFeature.MQ |
  ProtocolFeature.LOG_SHMFD |
  ProtocolFeature.REPLY_ACK |
  ProtocolFeature.BACKEND_REQ |
  ProtocolFeature.CONFIG |
  ProtocolFeature.INFLIGHT_SHMFD |
  ProtocolFeature.RESET_DEVICE |
  ProtocolFeature.CONFIGURE_MEM_SLOTS;

export interface ConfigSource {
  readonly bytes: Bytes;
  readonly blockBytes: Bytes;
  readonly writeback: boolean;
  readonly queues: number;
  readonly limits: Limits;
}

/** {@link CONFIG_SPACE_BYTES} of it. */
export function configSpace({ bytes, blockBytes, writeback, queues, limits }: ConfigSource): Uint8Array {
  const physical = Math.max(limits.alignment, blockBytes);
  const config: BlkConfig = {
    capacity: bytes / BLK_SECTOR,
    sizeMax: SIZE_MAX,
    segMax: SEG_MAX,
    blockBytes,
    physicalBlockExponent: Math.floor(Math.log2(physical / blockBytes)),
    optimalBlocks: Math.ceil(Math.max(limits.optimal, blockBytes) / blockBytes),
    writeback,
    queues,
    maxDiscardSectors: MAX_RANGE_SECTORS,
    discardAlignmentSectors: blockBytes / BLK_SECTOR,
    maxZeroSectors: MAX_RANGE_SECTORS,
    zeroMayUnmap: true,
  };
  const space = new Uint8Array(CONFIG_SPACE_BYTES);
  space.set(encodeBlkConfig(config));
  return space;
}
