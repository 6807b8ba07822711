import { MessageChannel } from 'node:worker_threads';
import type { IOThread } from './iothread.ts';

/** A thread, as far as a move needs it. */
export type MoveThread = Pick<IOThread, 'name' | 'call' | 'stop'>;

export interface DiskMoved {
  readonly nodeName: string;
  /** The old home goes on using the disk. */
  readonly guest: boolean;
}

/**
 * Moves a disk from one IOThread to another: docs/CHANNELS.md, "Moving a tree". Calls `switched` as soon as its home is
 * there; rejects before that where it stays, and after it where the new home could not bring it to its end.
 */
export async function moveDisk(
  disk: number,
  from: MoveThread,
  to: MoveThread,
  switched: (moved: DiskMoved) => void = () => undefined,
): Promise<void> {
  const moved = await from.call('move-out', { disk, to: to.name });
  const { port1, port2 } = new MessageChannel();
  let nodeName = '';
  let guest = false;
  try {
    const { identity, optimal, ...reply } = await to.call('move-in', { disk, moved, link: port2 }, [port2]);
    nodeName = reply.nodeName;
    guest = await from.call('move-commit', { disk, link: port1, identity, optimal }, [port1]);
  } catch (error) {
    port1.close();
    if (await to.call('move-drop', { disk }).catch(() => ended(to))) {
      await from.call('move-back', { disk }).catch(() => undefined);
      throw error;
    }
    // The old home has made the switch, and has died before it could say so.
  }
  switched({ nodeName, guest });
  await to.call('move-done', { disk });
}

/** Waits for the end of a thread that takes no calls any more: nothing of the disk is written there after it. */
async function ended(thread: MoveThread): Promise<true> {
  await thread.stop().catch(() => undefined);
  return true;
}
