/** What crosses between threads when a disk moves: see docs/CHANNELS.md, "Moving a tree". */
import type { MessagePort } from 'node:worker_threads';
import type { Bytes } from '../base/units.ts';
import type { MovedTree } from '../block/move.ts';
import type { BlkIdentity, MovedChannel, SharedWords } from '../channel/layout.ts';

interface MovingDisk {
  readonly disk: number;
}

export interface MoveOutMessage extends MovingDisk {
  /** The IOThread it goes to, for messages. */
  readonly to: string;
}

/** A disk that rests, as it is opened elsewhere. */
export interface MovedDisk {
  readonly name: string;
  readonly tree: MovedTree;
  readonly readOnly: boolean;
  readonly writethrough: boolean;
  /** Shared words that it keeps: see channel/layout.ts and block/io-counters.ts. */
  readonly words: SharedWords;
  readonly counters: Float64Array<SharedArrayBuffer>;
}

export interface MoveInMessage extends MovingDisk {
  readonly moved: MovedDisk;
  /** Where the old home posts {@link LinkMessage}; it closes without one when the move fails. */
  readonly link: MessagePort;
}

export interface MoveInReply {
  readonly identity: BlkIdentity;
  readonly nodeName: string;
  readonly optimal: Bytes;
}

export interface MoveCommitMessage extends MovingDisk, Pick<MoveInReply, 'identity' | 'optimal'> {
  /** The other end of the new home's. */
  readonly link: MessagePort;
}

/** From the old home to the new one: the switch itself. */
export interface LinkMessage {
  readonly channels: readonly MovedChannel[];
}

export interface MoveMethods {
  'move-out'(args: MoveOutMessage): MovedDisk;
  'move-back'(args: MovingDisk): void;
  'move-in'(args: MoveInMessage): MoveInReply;
  /** True where a guest is left behind. */
  'move-commit'(args: MoveCommitMessage): boolean;
  /** Waits for the end in the new home. */
  'move-done'(args: MovingDisk): void;
  /** Gives up what was opened. False where the switch has been made. */
  'move-drop'(args: MovingDisk): boolean;
}
