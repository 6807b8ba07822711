/** The exports of a server, and what a client is told about one. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, isPowerOfTwo, KiB, MAX_OFFSET } from '../../base/units.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { TransmissionFlag } from '../../proto/nbd/constants.ts';
import { isWireString } from '../../proto/nbd/option.ts';
import type { ExportBitmaps } from './bitmaps.ts';
import type { ActiveContexts } from './meta-context.ts';

export interface NbdExport {
  /** At most 4096 bytes of UTF-8; '' is the export of clients that name none. */
  readonly name: string;
  /** For people; '' for none. At most 4096 bytes of UTF-8. */
  readonly description: string;
  /** Where its next request goes: see NbdServer.rehome. */
  blk: BlockBackend;
  readonly writable: boolean;
  /** Offer `qemu:allocation-depth`. */
  readonly allocationDepth: boolean;
  /** Tell clients that they may open several connections: a flush on one covers the writes of all, since all share one
   *  node. */
  readonly multiConn: boolean;
  /** Offer `qemu:dirty-bitmap:NAME` of these; the server releases them. */
  readonly bitmaps?: ExportBitmaps | undefined;
  /** Where its clients are served while its disk is in another thread; absent where all of them are served here. */
  readonly otherHome?: OtherHome | undefined;
}

/** The server of an export in whichever thread is its disk's home: see docs/CHANNELS.md, "NBD connections follow". */
export interface OtherHome {
  /** False while this thread is it: clients are served here. */
  readonly elsewhere: boolean;
  /**
   * Has it serve a client in the transmission phase: see NbdServer.adopt. Resolves when that is over; the descriptor
   * stays open until then. Answers what to go on from where the disk has moved on meanwhile, else undefined: the client
   * has gone. Does not reject.
   */
  handOver(fd: number, handed: HandedOver): Promise<HandedOver | undefined>;
}

/** What has been agreed on with a client; survives structured clone. */
export interface HandedOver {
  readonly exportName: string;
  /** Structured replies; true as well with {@link extended}. */
  readonly structured: boolean;
  /** 32-byte headers. */
  readonly extended: boolean;
  readonly contexts: ActiveContexts;
  /** What the client has sent in the transmission phase and nobody has parsed, from the start of a request on. At most
   *  a receive chunk. */
  readonly buffered: Uint8Array;
}

/** How a handshake looks exports up. */
export interface ExportDirectory {
  /** The export of exactly this name. */
  find(name: string): NbdExport | undefined;
  /** In the order in which they were added. */
  list(): Iterable<NbdExport>;
  readonly count: number;
}

export class ExportList implements ExportDirectory {
  // A Map, not an object: names come from the network, `__proto__` among them.
  readonly #exports = new Map<string, NbdExport>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  get count(): number {
    return this.#exports.size;
  }

  find(name: string): NbdExport | undefined {
    return this.#exports.get(name);
  }

  list(): Iterable<NbdExport> {
    return this.#exports.values();
  }

  /** Throws EEXIST for a name that is taken, EINVAL for one that cannot travel, ENOSPC beyond the limit. */
  add(entry: NbdExport): void {
    const what = `Could not add NBD export '${entry.name.slice(0, 100)}'`;
    if (!isWireString(entry.name)) {
      throw new BlockError(Errno.EINVAL, `${what}: the name is not at most 4096 bytes of text`);
    }
    if (!isWireString(entry.description)) {
      throw new BlockError(Errno.EINVAL, `${what}: the description is not at most 4096 bytes of text`);
    }
    if (this.#exports.has(entry.name)) throw new BlockError(Errno.EEXIST, `${what}: the name is in use`);
    if (this.#exports.size >= this.#max) {
      throw new BlockError(Errno.ENOSPC, `${what}: there are ${this.#max} exports already`);
    }
    this.#exports.set(entry.name, entry);
  }

  remove(name: string): boolean {
    return this.#exports.delete(name);
  }
}

/** The size a client is told, exactly. */
export function exportSize(entry: NbdExport): Bytes {
  return Math.min(entry.blk.length, MAX_OFFSET);
}

/** TransmissionFlag bits; `structured` is true with structured or extended replies. */
export function transmissionFlags(entry: NbdExport, structured: boolean): number {
  let flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA;
  flags |= TransmissionFlag.SEND_CACHE;
  if (structured) flags |= TransmissionFlag.SEND_DF;
  if (entry.multiConn) flags |= TransmissionFlag.CAN_MULTI_CONN;
  if (!entry.writable) return flags | TransmissionFlag.READ_ONLY;
  return flags | TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO;
}

export interface BlockSizes {
  readonly minimum: Bytes;
  readonly preferred: Bytes;
  readonly maximum: Bytes;
}

/**
 * What the BLOCK_SIZE information says. All three are powers of two. The minimum is what the node below works in, made
 * smaller where the size is no multiple of it: the specification wants the whole export to be reachable, and block/
 * serves requests of any alignment.
 */
export function blockSizes(entry: NbdExport, maxPayload: Bytes): BlockSizes {
  const { alignment, optimal } = entry.blk.limits;
  let minimum = Math.min(64 * KiB, powerOfTwoUp(alignment));
  while (exportSize(entry) % minimum !== 0) minimum /= 2;
  const preferred = Math.min(maxPayload, powerOfTwoUp(Math.max(4096, optimal, minimum)));
  return { minimum, preferred, maximum: maxPayload };
}

function powerOfTwoUp(value: number): number {
  if (isPowerOfTwo(value)) return value;
  let power = 1;
  while (power < value) power *= 2;
  return power;
}
