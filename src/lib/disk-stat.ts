import type { Bytes } from '../base/units.ts';
import type { StatReply } from './messages.ts';

/** What is known of a disk, with the names that node's Stats has. */
export class DiskStat {
  /** Bytes. */
  readonly size: Bytes;
  /** Preferred size of requests, in bytes. */
  readonly blksize: Bytes;
  /** The size in units of 512 bytes, rounded up. */
  readonly blocks: number;
  /** Requests that are multiples of it are not padded, in bytes. */
  readonly alignment: Bytes;
  readonly readOnly: boolean;

  constructor(reply: StatReply) {
    this.size = reply.size;
    this.blksize = reply.optimal;
    this.blocks = Math.ceil(reply.size / 512);
    this.alignment = reply.alignment;
    this.readOnly = reply.readOnly;
  }

  isFile(): boolean {
    return true;
  }

  isDirectory(): boolean {
    return false;
  }

  isBlockDevice(): boolean {
    return false;
  }

  isCharacterDevice(): boolean {
    return false;
  }

  isSymbolicLink(): boolean {
    return false;
  }

  isFIFO(): boolean {
    return false;
  }

  isSocket(): boolean {
    return false;
  }
}
