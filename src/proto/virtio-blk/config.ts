/** The configuration space of a virtio block device. [virtio 1.2: 5.2.4 Device configuration layout] */

/** Up to the end of the fields for writing zeroes. */
export const BLK_CONFIG_BYTES = 60;
/** Where the driver switches the write cache on and off. */
export const CONFIG_WRITEBACK_AT = 32;

const TWO_32 = 0x1_0000_0000;

export interface BlkConfig {
  /** In sectors of 512 bytes. */
  readonly capacity: number;
  /** Of one segment in bytes, and segments in one request. */
  readonly sizeMax: number;
  readonly segMax: number;
  /** Logical block in bytes. */
  readonly blockBytes: number;
  /** Logical blocks in a physical one, as a power of two; best size of a request in logical blocks. */
  readonly physicalBlockExponent: number;
  readonly optimalBlocks: number;
  readonly writeback: boolean;
  readonly queues: number;
  /** In sectors; one segment a request. */
  readonly maxDiscardSectors: number;
  readonly discardAlignmentSectors: number;
  readonly maxZeroSectors: number;
  readonly zeroMayUnmap: boolean;
}

export function encodeBlkConfig(config: BlkConfig): Uint8Array {
  const bytes = new Uint8Array(BLK_CONFIG_BYTES);
  const view = new DataView(bytes.buffer);
  const high = Math.floor(config.capacity / TWO_32);
  view.setUint32(0, config.capacity - high * TWO_32, true);
  view.setUint32(4, high, true);
  view.setUint32(8, config.sizeMax, true);
  view.setUint32(12, config.segMax, true);
  view.setUint32(20, config.blockBytes, true);
  view.setUint8(24, config.physicalBlockExponent);
  view.setUint16(26, 1, true);
  view.setUint32(28, config.optimalBlocks, true);
  view.setUint8(CONFIG_WRITEBACK_AT, config.writeback ? 1 : 0);
  view.setUint16(34, config.queues, true);
  view.setUint32(36, config.maxDiscardSectors, true);
  view.setUint32(40, 1, true);
  view.setUint32(44, config.discardAlignmentSectors, true);
  view.setUint32(48, config.maxZeroSectors, true);
  view.setUint32(52, 1, true);
  view.setUint8(56, config.zeroMayUnmap ? 1 : 0);
  return bytes;
}

/** From at least {@link BLK_CONFIG_BYTES}; a capacity of 2^53 or more is -1. */
export function decodeBlkConfig(bytes: Uint8Array): BlkConfig {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const high = view.getUint32(4, true);
  return {
    capacity: high >= 0x20_0000 ? -1 : high * TWO_32 + view.getUint32(0, true),
    sizeMax: view.getUint32(8, true),
    segMax: view.getUint32(12, true),
    blockBytes: view.getUint32(20, true),
    physicalBlockExponent: view.getUint8(24),
    optimalBlocks: view.getUint32(28, true),
    writeback: view.getUint8(CONFIG_WRITEBACK_AT) !== 0,
    queues: view.getUint16(34, true),
    maxDiscardSectors: view.getUint32(36, true),
    discardAlignmentSectors: view.getUint32(44, true),
    maxZeroSectors: view.getUint32(48, true),
    zeroMayUnmap: view.getUint8(56) !== 0,
  };
}
