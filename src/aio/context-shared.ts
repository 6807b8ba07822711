/**
 * The words of a context that other threads see (one Int32Array on a SharedArrayBuffer), and the protocol that wakes a
 * sleeping context without ever losing a wake-up (SEMANTICS E6):
 *
 *     waker:   put the work in place; REMOTE_PENDING = 1; if exchange(SLEEPING, 0) was 1, wake (one system call)
 *     sleeper: SLEEPING = 1; if REMOTE_PENDING, do not sleep; sleep; SLEEPING = 0
 *
 * Both sides write one word and then read the other's, with sequentially consistent atomics: whichever is second sees
 * the first, so either the waker wakes or the sleeper stays up.
 */
import type { WakeHandle } from './backend.ts';

/** How many bottom halves of a context other threads can hold. */
export const REMOTE_BH_SLOTS = 1024;

export const SharedWord = {
  /** 1 while the thread sleeps, or is about to, and has to be woken. */
  SLEEPING: 0,
  /** Changes with every wake-up; what Atomics.waitAsync watches where there is no eventfd. */
  NOTIFY: 1,
  /** 1 when BH_BITS, BH_CANCEL_BITS or BH_DELETE_BITS has something new. */
  REMOTE_PENDING: 2,
  /** 1 once the context has stopped: what is scheduled now will never run. */
  STOPPED: 3,
  /** Wake-ups that cost a system call, and those that were saved because the context was awake. */
  WAKES_SENT: 4,
  WAKES_SAVED: 5,
  /** Threads that are between taking SLEEPING and their wake-up: its descriptor is not closed under them. */
  WAKERS: 6,
  /** The kernel's number of the thread, 0 while unknown: see RemoteContext.dead. */
  KERNEL_THREAD: 7,
  BH_BITS: 16,
  BH_DELETE_BITS: 16 + REMOTE_BH_SLOTS / 32,
  BH_CANCEL_BITS: 16 + (2 * REMOTE_BH_SLOTS) / 32,
  /** One word a slot: the serial number of the bottom half that owns it, 0 for nobody. A handle of an earlier owner is
   *  told by it. */
  BH_OWNERS: 16 + (3 * REMOTE_BH_SLOTS) / 32,
} as const;

export const SHARED_WORDS = SharedWord.BH_OWNERS + REMOTE_BH_SLOTS;

export function newSharedWords(): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(SHARED_WORDS * 4));
}

/** A context as other threads know it; survives structured clone. */
export interface RemoteContextHandle {
  readonly name: string;
  readonly shared: Int32Array<SharedArrayBuffer>;
  /** See loop-counters.ts. */
  readonly counters: Float64Array<SharedArrayBuffer>;
  readonly wake: WakeHandle;
}
