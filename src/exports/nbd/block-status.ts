/** BLOCK_STATUS: one chunk for each chosen context, in the request's block of the byte budget. */
import { BlockError } from '../../base/errors.ts';
import { type Bytes, KiB, type Offset } from '../../base/units.ts';
import { BlockStatus } from '../../block/status.ts';
import { AllocationFlag, Chunk, CommandFlag, DIRTY, ReplyFlag } from '../../proto/nbd/constants.ts';
import {
  BLOCK_STATUS_EXT_PREFIX,
  BLOCK_STATUS_PREFIX,
  EXTENT_EXT_SIZE,
  EXTENT_SIZE,
  encodeBlockStatus,
  encodeBlockStatusExt,
  encodeChunk,
  encodeExtendedChunk,
  encodeExtent,
  encodeExtentExt,
} from '../../proto/nbd/reply.ts';
import type { ByteBudget } from './budget.ts';
import type { NbdExport } from './export-list.ts';
import type { Negotiated } from './handshake.ts';
import { contextCount } from './meta-context.ts';
import type { NbdRequest } from './request.ts';

/** Memory of one answer: the extents of all contexts. A client asks on for what does not fit. */
export const STATUS_BYTES: Bytes = 64 * KiB;
const HEADER_MAX = 64;
/** The longest extent in a chunk with 32-bit lengths, a multiple of every alignment. */
const LENGTH_MAX = 0xffff_0000;

const STEPS_PER_TURN = 64;

interface Run {
  length: Bytes;
  flags: number;
}

/** Finds the extents of `request` and encodes the answer; 0 or a negative errno. */
export async function blockStatus(request: NbdRequest, negotiated: Negotiated, budget: ByteBudget): Promise<number> {
  const { baseAllocation, allocationDepth, bitmaps = [] } = negotiated.contexts;
  const each = negotiated.extended ? EXTENT_EXT_SIZE : EXTENT_SIZE;
  const room = Math.floor((STATUS_BYTES / contextCount(negotiated.contexts) - HEADER_MAX) / each);
  const max = (request.commandFlags & CommandFlag.REQ_ONE) !== 0 ? 1 : room;
  const allocation: Run[] = [];
  const depth: Run[] = [];
  const chunks: [number, readonly Run[]][] = [];
  try {
    if (baseAllocation !== undefined || allocationDepth !== undefined) {
      await collect(request, negotiated, max, allocation, depth);
    }
    if (baseAllocation !== undefined) chunks.push([baseAllocation, allocation]);
    if (allocationDepth !== undefined) chunks.push([allocationDepth, depth]);
    for (const { id, index } of bitmaps) chunks.push([id, await dirtyRuns(request, negotiated, index, max)]);
  } catch (failure) {
    if (!(failure instanceof BlockError)) throw failure;
    return -failure.errno;
  }
  const answer = new Answer(request, negotiated, budget.memory.view);
  for (const [i, [id, runs]] of chunks.entries()) answer.chunk(id, runs, i === chunks.length - 1);
  request.payloadLength = answer.length;
  return 0;
}

/** Dirty and clean ranges of the request, by the bitmap of that number. Each context may end where it likes. */
async function dirtyRuns(request: NbdRequest, negotiated: Negotiated, index: number, max: number): Promise<Run[]> {
  const longest = longestExtent(negotiated);
  const runs: Run[] = [];
  let at = request.at;
  // What is clean may be empty, in the first place.
  const found = negotiated.export.bitmaps!.edges(index, at, at + request.length, max + 1);
  const edges = found instanceof Promise ? await found : found;
  for (const [i, edge] of edges.entries()) {
    for (const flags = i % 2 === 0 ? 0 : DIRTY; at < edge; ) {
      const length = Math.min(edge - at, longest);
      if (!add(runs, length, flags, max, longest)) return runs;
      at += length;
    }
  }
  return runs;
}

function longestExtent({ extended }: Negotiated): Bytes {
  return extended ? Number.MAX_SAFE_INTEGER : LENGTH_MAX;
}

async function collect(
  request: NbdRequest,
  negotiated: Negotiated,
  max: number,
  allocation: Run[],
  depth: Run[],
): Promise<void> {
  const entry = negotiated.export;
  const longest = longestExtent(negotiated);
  const end = request.at + request.length;
  const found = new BlockStatus();
  // Each step may be a look at the file system: others get their turn in between.
  await entry.blk.context.yield();
  let steps = 0;
  for (let at = request.at; at < end; ) {
    await statusOf(entry, at, end - at, found);
    const length = Math.min(found.length, end - at, longest);
    const flags = (found.data ? 0 : AllocationFlag.HOLE) | (found.zero ? AllocationFlag.ZERO : 0);
    // Both contexts describe the same range: when one is full, the other one ends there too.
    const fits = add(allocation, length, flags, max, longest);
    if (!add(depth, length, found.depth, max, longest) || !fits) break;
    at += length;
    if (++steps % STEPS_PER_TURN === 0) await entry.blk.context.yield();
  }
}

/** Asked again where the export has got another BlockBackend while it waited. */
async function statusOf(entry: NbdExport, at: Offset, length: Bytes, out: BlockStatus): Promise<void> {
  for (;;) {
    const { blk } = entry;
    try {
      return await blk.blockStatus(at, length, out);
    } catch (error) {
      if (entry.blk === blk) throw error;
    }
  }
}

/** False when there is no room for another run. */
function add(runs: Run[], length: Bytes, flags: number, max: number, longest: Bytes): boolean {
  const last = runs.at(-1);
  if (last && last.flags === flags && last.length + length <= longest) {
    last.length += length;
    return true;
  }
  if (runs.length >= max) return false;
  runs.push({ length, flags });
  return true;
}

class Answer {
  readonly #request: NbdRequest;
  readonly #extended: boolean;
  readonly #view: DataView;
  length = 0;

  constructor(request: NbdRequest, negotiated: Negotiated, view: DataView) {
    this.#request = request;
    this.#extended = negotiated.extended;
    this.#view = view;
  }

  chunk(context: number, runs: readonly Run[], last: boolean): void {
    const { cookieHi, cookieLo, offset, blockAt } = this.#request;
    const view = this.#view;
    const flags = last ? ReplyFlag.DONE : 0;
    let at = blockAt + this.length;
    if (this.#extended) {
      const payload = BLOCK_STATUS_EXT_PREFIX + runs.length * EXTENT_EXT_SIZE;
      at += encodeExtendedChunk(view, at, flags, Chunk.BLOCK_STATUS_EXT, cookieHi, cookieLo, offset, payload);
      at += encodeBlockStatusExt(view, at, context, runs.length);
      for (const run of runs) at += encodeExtentExt(view, at, run.length, run.flags);
    } else {
      const payload = BLOCK_STATUS_PREFIX + runs.length * EXTENT_SIZE;
      at += encodeChunk(view, at, flags, Chunk.BLOCK_STATUS, cookieHi, cookieLo, payload);
      at += encodeBlockStatus(view, at, context);
      for (const run of runs) at += encodeExtent(view, at, run.length, run.flags);
    }
    this.length = at - blockAt;
  }
}
