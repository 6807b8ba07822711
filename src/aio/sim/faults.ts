/** What goes wrong in a simulated world: by chance, or at a given operation. */

import { Errno } from '../../base/errors.ts';
import type { Prng } from '../../base/prng.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';

export type FaultOp = 'read' | 'write' | 'datasync' | 'allocate' | 'truncate' | 'recv' | 'send' | 'connect';

/** One fault at one operation. */
export interface ScriptedFault {
  readonly op: FaultOp;
  /** Which one, counted from 1 since the fault was given to the world. */
  readonly nth: number;
  /** Only operations on this file count. */
  readonly path?: string;
  /** Positive. The operation fails with it; on a socket the connection breaks. */
  readonly errno?: number;
  /** With `errno`, of a write: all of it was done, and it fails nevertheless. */
  readonly late?: boolean;
  /** The operation moves only so many bytes. */
  readonly short?: Bytes;
  /** The operation takes so much longer. */
  readonly delayNs?: Nanoseconds;
}

/** Probabilities, 0..1. */
export interface FaultChances {
  readonly error?: number;
  /** What `error` gives; EIO for files, ECONNRESET for sockets when absent. */
  readonly errno?: number;
  readonly short?: number;
  /** 100 times slower. */
  readonly slow?: number;
}

export interface SimFaults {
  readonly script?: readonly ScriptedFault[];
  readonly chances?: Partial<Record<FaultOp, FaultChances>>;
  /** What all files together may use, in bytes; more is ENOSPC. */
  readonly capacity?: Bytes;
}

/** What happens to one operation. */
export interface Fate {
  /** Positive errno, 0 for success. */
  readonly errno: number;
  /** A write that fails has been done. */
  readonly late: boolean;
  /** Bytes to move at most. */
  readonly limit: Bytes;
  readonly delayNs: Nanoseconds;
}

const SLOW_NS = 20_000_000;

export class FaultSource {
  readonly #prng: Prng;
  readonly #chances: Partial<Record<FaultOp, FaultChances>>;
  readonly #script: { fault: ScriptedFault; seen: number }[] = [];

  constructor(prng: Prng, faults: SimFaults) {
    this.#prng = prng;
    this.#chances = faults.chances ?? {};
    for (const fault of faults.script ?? []) this.add(fault);
  }

  /** Scripted faults that have not happened yet. */
  get waiting(): number {
    return this.#script.filter(({ fault, seen }) => seen < fault.nth).length;
  }

  add(fault: ScriptedFault): void {
    this.#script.push({ fault, seen: 0 });
  }

  decide(op: FaultOp, length: Bytes, path?: string): Fate {
    let errno = 0;
    let late = false;
    let limit = length;
    let delayNs = 0;
    for (const entry of this.#script) {
      const { fault } = entry;
      if (fault.op !== op || (fault.path !== undefined && fault.path !== path)) continue;
      if (++entry.seen !== fault.nth) continue;
      errno = fault.errno ?? errno;
      late ||= fault.late ?? false;
      limit = Math.min(limit, fault.short ?? limit);
      delayNs += fault.delayNs ?? 0;
    }
    const chances = this.#chances[op];
    if (chances) {
      const socket = op === 'recv' || op === 'send' || op === 'connect';
      if (this.#prng.chance(chances.error ?? 0)) errno = chances.errno ?? (socket ? Errno.ECONNRESET : Errno.EIO);
      if (length > 1 && this.#prng.chance(chances.short ?? 0))
        limit = Math.min(limit, this.#prng.between(1, length - 1));
      if (this.#prng.chance(chances.slow ?? 0)) delayNs += SLOW_NS;
    }
    return { errno, late, limit, delayNs };
  }
}
