/**
 * The shared words of a channel (docs/CHANNELS.md): one SharedArrayBuffer for each (thread, BlockBackend), and one for
 * each BlockBackend that all its channels see. What each word means, and who writes it, is said here only.
 */
import type { MessagePort } from 'node:worker_threads';
import type { RemoteBottomHalfHandle } from '../aio/bottom-half.ts';
import type { RemoteContextHandle } from '../aio/context-shared.ts';
import type { PlainError } from '../base/errors.ts';

/** Requests of one channel in flight at once, the synchronous one included. A power of two. */
export const SLOTS = 256;
/** The slot of the synchronous request: a thread has at most one, and it must not wait for others to end. */
export const SYNC_SLOT = SLOTS - 1;
/** Pieces of memory in one record. */
export const RUNS_MAX = 16;
/** Regions that one channel knows: each keeps a buffer of the client's alive in home. */
export const REGIONS_MAX = 1024;

const LINE = 16;
const RECORD_WORDS = 64;

/** By index; the flags and indices that both sides look at are on cache lines of their own. */
export const Word = {
  /** Client: how many slot numbers it has put into the submission ring. */
  SUBMITTED: 0,
  /** Home stores 1 when it rests, the client exchanges it for 0 and then wakes home. */
  HOME_IDLE: LINE,
  /** Home: how many slot numbers it has put into the completion ring. */
  COMPLETED: 2 * LINE,
  /** Client stores 1 when it rests, home exchanges it for 0 and then wakes the client. */
  CLIENT_ASLEEP: 3 * LINE,
  /** 0 until a thread has attached, then that thread's id + 1. */
  CLIENT: 4 * LINE,
  /** Client, before its first request: 1 when a bottom half wakes it (message 'client'), not Atomics.notify. */
  CLIENT_HAS_LOOP: 4 * LINE + 1,
  /** Client: changes with each CANCEL it has set in a record. */
  CANCELS: 4 * LINE + 2,
  /** Home: changes when it is in another context from now on, which has posted where (message 'home'). */
  HOME_EPOCH: 4 * LINE + 3,
  /** Client: bottom halves it has scheduled in home, and those it has saved because home was busy. */
  HOME_WAKES: 5 * LINE,
  HOME_WAKES_SAVED: 5 * LINE + 1,
  /** Home: the same towards the client. */
  CLIENT_WAKES: 6 * LINE,
  CLIENT_WAKES_SAVED: 6 * LINE + 1,
  /** Client: how much it has under way on lent extents, for even epochs and, one word on, for odd ones. */
  BORROWED: 7 * LINE,
  SUBMIT_RING: 8 * LINE,
  COMPLETE_RING: 8 * LINE + SLOTS,
  RECORDS: 8 * LINE + 2 * SLOTS,
} as const;

const CHANNEL_WORDS = Word.RECORDS + SLOTS * RECORD_WORDS;

/** Words of a record. The client writes all but STATE's last step, RESULT and STATUS, and before it submits. */
export const Field = {
  /** Synchronous requests: see SyncState. */
  STATE: 0,
  KIND: 1,
  FLAGS: 2,
  /** 1: the client does not want it any more. */
  CANCEL: 3,
  AT_LOW: 4,
  AT_HIGH: 5,
  /** Also home's answer about block status. */
  LENGTH_LOW: 6,
  LENGTH_HIGH: 7,
  RUN_COUNT: 8,
  /** 0 or a negative errno. */
  RESULT: 9,
  /** Block status: bit 0 data, bit 1 zero; and which layer. BORROW: bits of Lent, and the epoch it is true in; AT is
   *  the place in the file. */
  STATUS: 10,
  LAYER: 11,
  /** 1: the error is on the port in full (message 'failure'). */
  DETAIL: 12,
  /** Three words a run: region, offset in it, length. */
  RUNS: 16,
} as const;

/** Client: PENDING, then WAITING before it sleeps; home: DONE, and a notification to who is WAITING. */
export const SyncState = { PENDING: 1, WAITING: 2, DONE: 3 } as const;

/** What a record asks for beyond RequestKind. */
export const ChannelKind = { STATUS: 16, DRAIN_BEGIN: 17, DRAIN_END: 18, BORROW: 19 } as const;

/** Words of a BlockBackend, written by home. */
export const DiskWord = {
  /** 1 once it takes no more requests. */
  CLOSED: 0,
  READ_ONLY: 1,
  /** Odd while the length is being changed. */
  LENGTH_VERSION: 2,
  LENGTH_LOW: 3,
  LENGTH_HIGH: 4,
  /** What clients may do on lent extents: bits of Lent. */
  LENT: LINE,
  /** Changes when what was lent is not true any more. */
  LEASE_EPOCH: LINE + 1,
  /** 1: home wants to be scheduled when somebody has nothing under way any more. */
  LENDER_WAITS: LINE + 2,
} as const;
const DISK_WORDS = 2 * LINE;

/** NEVER, in an answer: nothing of the disk can be, in this epoch. */
export const Lent = { READ: 1, WRITE: 2, NEVER: 4 } as const;

export type SharedWords = Int32Array<SharedArrayBuffer>;

export function newChannelWords(): SharedWords {
  const words = new Int32Array(new SharedArrayBuffer(CHANNEL_WORDS * 4));
  words[Word.HOME_IDLE] = 1;
  return words;
}

export function newDiskWords(): SharedWords {
  return new Int32Array(new SharedArrayBuffer(DISK_WORDS * 4));
}

export function isChannelWords(words: unknown): words is SharedWords {
  return words instanceof Int32Array && words.buffer instanceof SharedArrayBuffer && words.length === CHANNEL_WORDS;
}

/** Where the record of a slot begins. */
export function recordAt(slot: number): number {
  return Word.RECORDS + slot * RECORD_WORDS;
}

/** Two words, low half first, as a number below 2^53 when the writer kept to that. */
export function readHalves(words: Int32Array, at: number): number {
  return (words[at + 1]! >>> 0) * 2 ** 32 + (words[at]! >>> 0);
}

export function writeHalves(words: Int32Array, at: number, value: number): void {
  const high = Math.floor(value / 2 ** 32);
  words[at] = value - high * 2 ** 32;
  words[at + 1] = high;
}

/** The length in bytes as of now, whole although it is two words. */
export function diskLength(words: SharedWords): number {
  for (;;) {
    const version = Atomics.load(words, DiskWord.LENGTH_VERSION);
    const length = readHalves(words, DiskWord.LENGTH_LOW);
    if ((version & 1) === 0 && Atomics.load(words, DiskWord.LENGTH_VERSION) === version) return length;
  }
}

export function setDiskLength(words: SharedWords, length: number): void {
  Atomics.add(words, DiskWord.LENGTH_VERSION, 1);
  writeHalves(words, DiskWord.LENGTH_LOW, length);
  Atomics.add(words, DiskWord.LENGTH_VERSION, 1);
}

/** What every thread may know of a shared BlockBackend; survives structured clone. */
export interface BlkIdentity {
  readonly name: string;
  /** Tells it from others of its home thread. */
  readonly id: number;
  readonly homeThread: number;
  readonly home: RemoteContextHandle;
  /** The bottom half that takes records up. */
  readonly takeUp: RemoteBottomHalfHandle;
  readonly disk: SharedWords;
  /** See block/io-counters.ts. */
  readonly counters: Float64Array<SharedArrayBuffer>;
  /** The global mutex of whom it comes from. */
  readonly mutex: SharedWords;
}

/** One home of a BlockBackend told from others. */
export type HomeName = Pick<BlkIdentity, 'homeThread' | 'id'>;

/** A new channel on its way to its home. `port` goes into the transfer list. */
export interface ChannelOffer {
  readonly words: SharedWords;
  readonly port: MessagePort;
}

/** One thread's way to a BlockBackend: by postMessage or workerData, with `port` in the transfer list, to
 *  BlkHandle.attach there. */
export interface BlkDescriptor extends BlkIdentity, ChannelOffer {
  readonly kind: 'blockplane-handle';
}

/** A channel on its way from one home to another: what the old one knows of it. `port` goes into the transfer list. */
export interface MovedChannel extends ChannelOffer {
  readonly regions: readonly { readonly id: number; readonly bytes: Uint8Array }[];
  /** Slot numbers taken up, and answered; CANCELS as it was looked at last. */
  readonly taken: number;
  readonly answered: number;
  readonly cancels: number;
  /** Slots that were taken up and have not begun, in order. */
  readonly waiting: readonly number[];
  /** Drained sections of its client. */
  readonly drains: number;
  /** How the client's own loop is woken. */
  readonly client: { readonly remote: RemoteContextHandle; readonly bh: RemoteBottomHalfHandle } | undefined;
}

export type ToHome =
  /** A buffer that requests may name from now on. */
  | { readonly kind: 'memory'; readonly id: number; readonly bytes: Uint8Array }
  | { readonly kind: 'forget'; readonly id: number }
  /** How the client's own loop is woken. */
  | { readonly kind: 'client'; readonly remote: RemoteContextHandle; readonly bh: RemoteBottomHalfHandle }
  /** A channel for another thread, whose descriptor says that home is `home`. */
  | { readonly kind: 'introduce'; readonly offer: ChannelOffer; readonly home: HomeName }
  | { readonly kind: 'close' };

export type ToClient =
  /** Lent extents are of the file with that descriptor; it stays open while the epoch lasts, and what was begun in
   *  it. */
  | { readonly kind: 'file'; readonly fd: number; readonly epoch: number }
  /** Home is there from `epoch` (HOME_EPOCH) on. */
  | { readonly kind: 'home'; readonly identity: BlkIdentity; readonly epoch: number }
  /** The length of the disk has changed. */
  | { readonly kind: 'resized' }
  /** Why home serves this channel no more. */
  | { readonly kind: 'end'; readonly error: PlainError }
  /** Posted before the slot is answered: what went wrong, in full. */
  | { readonly kind: 'failure'; readonly slot: number; readonly error: PlainError };
