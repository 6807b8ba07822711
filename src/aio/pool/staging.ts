/**
 * Streams that decrypt receive into one piece of memory for each connection. By itself Node makes a buffer outside of
 * the heap for every record of 16 KiB, and V8 goes through its whole heap after 64 MiB of them.
 */
import type { Socket } from 'node:net';
import { type Bytes, KiB } from '../../base/units.ts';

/** A stream with so much that nobody has asked for is paused. */
export const STAGED_MAX: Bytes = 256 * KiB;
/** What still comes after a stream was paused: what libuv had read, and a record that had begun before. */
export const STAGING_ROOM: Bytes = (64 + 16) * KiB;
/** With twice what is needed, moving what is there to the front is rare. */
export const STAGING_BYTES: Bytes = 2 * (STAGED_MAX + STAGING_ROOM);

/** What the option `onread` sets up in a socket that net.Socket connects itself. */
interface Receiving {
  readonly _handle?: { useUserBuffer?(buffer: Uint8Array): void } | null;
  [symbol: symbol]: unknown;
}

/**
 * Has `socket` receive into `memory` instead of emitting 'data'. `received` is told how many bytes have come; false
 * pauses the socket, until resume(). `end` is asked after that: where the next bytes are to go, with room behind it.
 * False where this Node.js does not have what that takes: nothing has changed then.
 */
export function receiveInto(
  socket: Socket,
  memory: Uint8Array,
  received: (length: Bytes) => boolean,
  end: () => Bytes,
): boolean {
  const target = socket as unknown as Receiving;
  const symbols = Object.getOwnPropertySymbols(socket);
  const [buffer, callback, next] = ['kBuffer', 'kBufferCb', 'kBufferGen'].map((name) =>
    symbols.find(({ description }) => description === name),
  );
  if (!buffer || !callback || !next || target[buffer] !== null || !target._handle?.useUserBuffer) return false;
  const room = (): Uint8Array => memory.subarray(end(), end() + STAGING_ROOM);
  target[buffer] = room();
  target[callback] = received;
  target[next] = room;
  target._handle.useUserBuffer(room());
  return true;
}
