/** How many clusters each part of an image takes, and where a new image has them. Pure arithmetic. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isOffset, type Offset } from '../../base/units.ts';
import { L1_BYTES_MAX, REFCOUNT_TABLE_BYTES_MAX } from '../../proto/qcow2/constants.ts';

export interface RefcountClusters {
  readonly blocks: number;
  readonly tableClusters: number;
}

/** What it takes to count `clusters` others, and the refcount blocks and the table themselves. */
export function refcountClusters(clusters: number, clusterSize: Bytes, refcountBits: number): RefcountClusters {
  const perBlock = (clusterSize * 8) / refcountBits;
  let blocks = 0;
  let tableClusters = 0;
  for (;;) {
    const nextBlocks = Math.ceil((clusters + blocks + tableClusters) / perBlock);
    const nextTable = Math.max(1, Math.ceil((nextBlocks * 8) / clusterSize));
    if (nextBlocks === blocks && nextTable === tableClusters) return { blocks, tableClusters };
    blocks = nextBlocks;
    tableClusters = nextTable;
  }
}

/** What a layout follows from. */
export interface ImageShape {
  /** Of the guest's disk. */
  readonly size: Bytes;
  readonly clusterSize: Bytes;
  readonly extendedL2: boolean;
  readonly refcountBits: number;
  /** Of the LUKS header with its key material; 0 for none. */
  readonly keyBytes: Bytes;
  /** All L2 tables are there, and have a place for every cluster of the disk. */
  readonly preallocated: boolean;
  /** The disk's clusters are in a file of their own. */
  readonly externalData: boolean;
}

/** The parts of a new image in the order of the file, behind the header's cluster. */
export interface ImageLayout extends RefcountClusters {
  readonly tableAt: Offset;
  readonly blocksAt: Offset;
  readonly l1At: Offset;
  /** Entries. */
  readonly l1Size: number;
  readonly l1Clusters: number;
  readonly keysAt: Offset;
  readonly l2At: Offset;
  readonly l2Tables: number;
  readonly dataAt: Offset;
  /** All clusters of the file, with the header's. */
  readonly clusters: number;
  readonly end: Offset;
}

function tooLarge(size: Bytes, why: string): BlockError {
  return new BlockError(
    Errno.EFBIG,
    `Could not create the image: ${size} bytes are too much, ${why}; larger clusters take fewer entries`,
  );
}

/** EFBIG where a table would be larger than the format's limits. */
export function imageLayout(shape: ImageShape): ImageLayout {
  const { size, clusterSize, preallocated } = shape;
  const guestClusters = Math.ceil(size / clusterSize);
  const l1Size = Math.ceil(guestClusters / (clusterSize / (shape.extendedL2 ? 16 : 8)));
  if (l1Size * 8 > L1_BYTES_MAX) throw tooLarge(size, `the L1 table would have more than ${L1_BYTES_MAX} bytes`);
  const l1Clusters = Math.ceil((l1Size * 8) / clusterSize);
  const keyClusters = Math.ceil(shape.keyBytes / clusterSize);
  const l2Tables = preallocated ? l1Size : 0;
  const dataClusters = preallocated && !shape.externalData ? guestClusters : 0;
  const others = 1 + l1Clusters + keyClusters + l2Tables + dataClusters;
  const refcounts = refcountClusters(others, clusterSize, shape.refcountBits);
  if (refcounts.tableClusters * clusterSize > REFCOUNT_TABLE_BYTES_MAX) {
    throw tooLarge(size, `the refcount table would have more than ${REFCOUNT_TABLE_BYTES_MAX} bytes`);
  }
  const tableAt = clusterSize;
  const blocksAt = tableAt + refcounts.tableClusters * clusterSize;
  const l1At = blocksAt + refcounts.blocks * clusterSize;
  const keysAt = l1At + l1Clusters * clusterSize;
  const l2At = keysAt + keyClusters * clusterSize;
  const dataAt = l2At + l2Tables * clusterSize;
  const end = dataAt + dataClusters * clusterSize;
  if (!isOffset(end)) throw tooLarge(size, 'the file would have 2^53 bytes or more');
  const clusters = end / clusterSize;
  return { ...refcounts, tableAt, blocksAt, l1At, l1Size, l1Clusters, keysAt, l2At, l2Tables, dataAt, clusters, end };
}
