import { MessageChannel } from 'node:worker_threads';
import type { IOThread } from './iothread.ts';
import type { MoveSubject } from './move-messages.ts';

/** A thread, as far as a move needs it. */
export type MoveThread = Pick<IOThread, 'name' | 'call' | 'stop'>;

export interface DiskMoved {
  readonly nodeName: string;
  /** The old home goes on using the disk. */
  readonly guest: boolean;
}

/** By the number of the disk. */
export type DisksMoved = ReadonlyMap<number, DiskMoved>;

let moves = 0;

/**
 * Moves a disk, or nodes with all disks on them, from one IOThread to another: docs/CHANNELS.md, "Moving a tree". Calls
 * `switched` as soon as their home is there; rejects before that where they stay, and after it where the new home could
 * not bring it to its end.
 */
export async function move(
  subject: MoveSubject,
  from: MoveThread,
  to: MoveThread,
  switched: (moved: DisksMoved) => void = () => undefined,
): Promise<void> {
  const number = ++moves;
  const moved = await from.call('move-out', { move: number, subject, to: to.name });
  const { port1, port2 } = new MessageChannel();
  let names: readonly (readonly [number, string])[] = [];
  let guests: readonly number[] = [];
  try {
    const arrived = await to.call('move-in', { move: number, moved, link: port2 }, [port2]);
    names = arrived.map(({ disk, nodeName }) => [disk, nodeName]);
    guests = await from.call('move-commit', { move: number, link: port1, arrived }, [port1]);
  } catch (error) {
    port1.close();
    if (await to.call('move-drop', { move: number }).catch(() => ended(to))) {
      await from.call('move-back', { move: number }).catch(() => undefined);
      throw error;
    }
    // The old home has made the switch, and has died before it could say so.
  }
  switched(new Map(names.map(([disk, nodeName]) => [disk, { nodeName, guest: guests.includes(disk) }])));
  await to.call('move-done', { move: number });
}

/** Waits for the end of a thread that takes no calls any more: nothing of the disks is written there after it. */
async function ended(thread: MoveThread): Promise<true> {
  await thread.stop().catch(() => undefined);
  return true;
}
