/** Numbers of the virtio block device. [virtio 1.2: 5.2 Block Device, 6 Reserved Feature Bits] */

/** Bits of the low word of features. */
export const BlkFeature = {
  SIZE_MAX: 1 << 1,
  SEG_MAX: 1 << 2,
  RO: 1 << 5,
  BLK_SIZE: 1 << 6,
  FLUSH: 1 << 9,
  TOPOLOGY: 1 << 10,
  CONFIG_WCE: 1 << 11,
  MQ: 1 << 12,
  DISCARD: 1 << 13,
  WRITE_ZEROES: 1 << 14,
} as const;

/** Bits of the low word that are the ring's and the transport's. */
export const RingFeature = {
  LOG_ALL: 1 << 26,
  INDIRECT_DESC: 1 << 28,
  EVENT_IDX: 1 << 29,
  /** Of vhost-user: there are protocol features. */
  PROTOCOL_FEATURES: 1 << 30,
} as const;

/** Bits of the high word. */
export const HighFeature = { VERSION_1: 1 << 0, RING_PACKED: 1 << 2 } as const;

export const BlkRequestType = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 } as const;

export const BlkStatus = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** type u32 | reserved u32 | sector u64 */
export const BLK_HEADER_BYTES = 16;
/** sector u64 | sectors u32 | flags u32 */
export const BLK_SEGMENT_BYTES = 16;
export const BLK_ID_BYTES = 20;
export const BLK_SECTOR = 512;
/** In the flags of a segment: the range may be deallocated. */
export const SEGMENT_UNMAP = 1;

/** The most descriptors of a queue that vhost-user allows. */
export const MAX_QUEUE_SIZE = 1024;
/** Of a device, unless something else is said: as many as anybody gives a guest processors. One that is not used costs
 *  nothing. */
export const DEFAULT_QUEUES = 64;
