/** Reads and writes of metadata outside the caches: headers, whole tables. For paths that are not hot. */
import type { AioContext } from '../../aio/context.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, KiB, type Offset, SECTOR } from '../../base/units.ts';
import type { Child } from '../../block/driver.ts';
import { clusterSizeOf, parseHeader, type Qcow2Header } from '../../proto/qcow2/header.ts';
import { type SnapshotEntry, type SnapshotFault, SnapshotTableParser } from '../../proto/qcow2/snapshot-table.ts';

/** Fresh memory that the kernel may use: zeroes. */
export function kernelBytes(length: Bytes): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(length));
}

export class MetadataIo {
  readonly aio: AioContext;
  readonly child: Child;

  constructor(aio: AioContext, child: Child) {
    this.aio = aio;
    this.child = child;
  }

  /** Of the file. */
  get length(): Bytes {
    return this.child.length;
  }

  /** `length` bytes from `at`; zeroes beyond the end of the file. Bounds are the caller's business. */
  async read(at: Offset, length: Bytes): Promise<Uint8Array> {
    const bytes = kernelBytes(length);
    // Memory beyond the end of the file is not touched, and so takes none: a short file may claim a long table.
    const there = Math.min(length, this.child.length - at);
    if (there > 0) await this.child.read(at, Iov.of(this.aio.backend.memory(bytes), 0, there));
    return bytes;
  }

  /** Writes all of `bytes`; they are copied first where the kernel could not use them. */
  async write(at: Offset, bytes: Uint8Array): Promise<void> {
    if (bytes.length === 0) return;
    let memory = bytes;
    if (!(bytes.buffer instanceof SharedArrayBuffer)) {
      memory = kernelBytes(bytes.length);
      memory.set(bytes);
    }
    await this.child.write(at, Iov.of(this.aio.backend.memory(memory)));
  }
}

/** `snapshotsMax`: see parseHeader. */
export async function readHeader(io: MetadataIo, snapshotsMax?: number): Promise<Qcow2Header> {
  const clusterSize = clusterSizeOf(await io.read(0, SECTOR));
  return parseHeader(await io.read(0, clusterSize), io.child.length, snapshotsMax);
}

export interface SnapshotTable {
  readonly entries: SnapshotEntry[];
  /** Bytes in the file. */
  readonly length: Bytes;
}

/** `fault`: see SnapshotTableParser. */
export async function readSnapshotTable(
  io: MetadataIo,
  header: Qcow2Header,
  fault?: SnapshotFault,
): Promise<SnapshotTable> {
  const parser = new SnapshotTableParser(header, io.child.length, fault);
  while (parser.needed > 0) parser.take(await io.read(parser.at, Math.max(parser.needed, 64 * KiB)));
  return parser;
}
