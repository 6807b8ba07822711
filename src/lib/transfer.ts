/** Moves a caller's bytes to and from a disk: through the thread's arena, in pieces, several at a time. */
import type { Bytes, Offset } from '../base/units.ts';
import type { Abortable } from './abort.ts';
import type { DiskChannel, OpenChannel } from './disk-channel.ts';
import { PIECE } from './memory.ts';

/** How many pieces of one request are under way at once. */
const PIECES_IN_FLIGHT = 8;

type Piece = (done: Bytes, length: Bytes) => Promise<Bytes>;

/**
 * Runs `piece` over 0..total and answers how many bytes were done without a gap. A short piece ends it: that is the end
 * of the disk. After a failure nothing new begins, and what was begun is waited for.
 */
async function inPieces(total: Bytes, piece: Piece, { signal }: Abortable): Promise<Bytes> {
  if (total <= PIECE) return piece(0, total);
  let next = 0;
  let end = total;
  let failed = false;
  const runner = async (): Promise<void> => {
    while (next < end && !failed) {
      if (signal?.aborted) throw signal.reason;
      const at = next;
      const length = Math.min(PIECE, end - at);
      next += length;
      try {
        const done = await piece(at, length);
        if (done < length) end = Math.min(end, at + done);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const runners = Math.min(PIECES_IN_FLIGHT, Math.ceil(total / PIECE));
  const results = await Promise.allSettled(Array.from({ length: runners }, runner));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
  return end;
}

/** Runs `use` with room for `length` bytes in the arena. */
async function withRoom<T>(
  { arena, share }: OpenChannel,
  length: Bytes,
  use: (room: Offset) => Promise<T>,
): Promise<T> {
  const room = await arena.acquire(share, length);
  try {
    return await use(room);
  } finally {
    arena.release(share, room);
  }
}

/** A scatter list of the caller's views, as one range. */
class Views {
  readonly length: Bytes;
  readonly #views: readonly Uint8Array[];

  constructor(views: readonly Uint8Array[]) {
    this.#views = views;
    this.length = views.reduce((sum, view) => sum + view.length, 0);
  }

  /** Calls `use` with the parts of the views that make up `length` bytes from `from`, and where they are in it. */
  walk(from: Bytes, length: Bytes, use: (part: Uint8Array, at: Offset) => void): void {
    let skip = from;
    let at = 0;
    for (const view of this.#views) {
      if (at === length) return;
      if (skip >= view.length) {
        skip -= view.length;
        continue;
      }
      const part = view.subarray(skip, skip + length - at);
      use(part, at);
      at += part.length;
      skip = 0;
    }
  }
}

/** Reads into `views` from `at`; answers the bytes read, fewer at the end of the disk. */
export async function readInto(
  channel: DiskChannel,
  views: readonly Uint8Array[],
  at: Offset,
  options: Abortable = {},
): Promise<Bytes> {
  const target = new Views(views);
  const opened = await channel.open();
  const { handle, arena } = opened;
  const piece: Piece = (done, length) =>
    withRoom(opened, length, async (room) => {
      const bytes = Math.min(length, handle.length - at - done);
      if (bytes <= 0) return 0;
      await channel.run(() => handle.read(at + done, arena.bytes.subarray(room, room + bytes)));
      if (options.signal?.aborted) return bytes;
      target.walk(done, bytes, (part, from) => part.set(arena.bytes.subarray(room + from, room + from + part.length)));
      return bytes;
    });
  return inPieces(target.length, piece, options);
}

/** Writes all of `views` at `at`. */
export async function writeFrom(
  channel: DiskChannel,
  views: readonly Uint8Array[],
  at: Offset,
  options: Abortable = {},
): Promise<void> {
  const source = new Views(views);
  const opened = await channel.open();
  const { handle, arena } = opened;
  const piece: Piece = (done, length) =>
    withRoom(opened, length, async (room) => {
      // Once it was given up, the caller's bytes may be anything.
      if (options.signal?.aborted) throw options.signal.reason;
      source.walk(done, length, (part, from) => arena.bytes.set(part, room + from));
      await channel.run(() => handle.write(at + done, arena.bytes.subarray(room, room + length)));
      return length;
    });
  await inPieces(source.length, piece, options);
}
