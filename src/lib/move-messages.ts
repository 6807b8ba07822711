/** What crosses between threads when disks and nodes move: see docs/CHANNELS.md, "Moving a tree". */
import type { MessagePort } from 'node:worker_threads';
import type { Bytes } from '../base/units.ts';
import type { MovedGraph } from '../block/move.ts';
import type { BlkIdentity, MovedChannel, SharedWords } from '../channel/layout.ts';

/** A disk with what is below it, which nobody else may use; or all nodes that hang together with the one of that name,
 *  with the disks on them. */
export type MoveSubject = { readonly disk: number } | { readonly node: string };

export interface MoveAskMessage {
  readonly subject: MoveSubject;
  /** The IOThread it goes to, for messages. */
  readonly to: string;
}

/** By the number that the program's thread has for it. */
interface Moving {
  readonly move: number;
}

export interface MoveOutMessage extends Moving, MoveAskMessage {}

/** A disk that rests, as it is opened elsewhere. */
export interface MovedDisk {
  readonly disk: number;
  readonly name: string;
  readonly root: string;
  readonly readOnly: boolean;
  readonly writethrough: boolean;
  readonly owner: string | undefined;
  readonly allowInactive: boolean;
  readonly perm: number;
  readonly shared: number;
  /** Shared words that it keeps: see channel/layout.ts and block/io-counters.ts. */
  readonly words: SharedWords;
  readonly counters: Float64Array<SharedArrayBuffer>;
}

export interface Moved {
  readonly graph: MovedGraph;
  /** Names of the nodes that are held until they are deleted. */
  readonly held: readonly string[];
  readonly disks: readonly MovedDisk[];
}

export interface MoveInMessage extends Moving {
  readonly moved: Moved;
  /** Where the old home posts {@link LinkMessage}; it closes without one when the move fails. */
  readonly link: MessagePort;
}

/** A disk as its new home has it. */
export interface ArrivedDisk {
  readonly disk: number;
  readonly identity: BlkIdentity;
  readonly nodeName: string;
  readonly optimal: Bytes;
}

export interface MoveCommitMessage extends Moving {
  readonly arrived: readonly ArrivedDisk[];
  /** The other end of the new home's. */
  readonly link: MessagePort;
}

/** From the old home to the new one: the switch itself. Channels by the disk. */
export type LinkMessage = ReadonlyMap<number, readonly MovedChannel[]>;

export interface MoveMethods {
  /** Throws who stands against it; answers the disks that would move. */
  'move-ask'(args: MoveAskMessage): number[];
  'move-out'(args: MoveOutMessage): Moved;
  'move-back'(args: Moving): void;
  'move-in'(args: MoveInMessage): ArrivedDisk[];
  /** The disks for which a guest is left behind. */
  'move-commit'(args: MoveCommitMessage): number[];
  /** Waits for the end in the new home. */
  'move-done'(args: Moving): void;
  /** Gives up what was opened. False where the switch has been made. */
  'move-drop'(args: Moving): boolean;
}
