/**
 * The rules of a blkdebug node, and what state they are in. An event makes the rules of its name that are for the
 * current state act: those that inject errors take the place of all that were active before, and stay active until
 * others take theirs. A request fails by the first active rule that is for it. Pure: no I/O.
 */
import type { Bytes, Offset } from '../../base/units.ts';
import type { DebugEvent } from '../../block/driver.ts';

export const IO_TYPES = ['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'] as const;
export type IoType = (typeof IO_TYPES)[number];

/** By the names of QAPI's BlkdebugInjectErrorOptions. */
export interface InjectError {
  readonly event: DebugEvent;
  /** The state that it is for; 0 (default) for any. */
  readonly state?: number;
  /** Default: all but block-status. */
  readonly iotype?: IoType;
  /** Default EIO; 0 for none. */
  readonly errno?: number;
  /** Of 512 bytes: only requests for it fail. Default -1: all do. */
  readonly sector?: number;
  /** It is gone once a request has failed by it. */
  readonly once?: boolean;
  /** Without effect: nothing completes inside the call that starts it. */
  readonly immediately?: boolean;
}

export interface SetState {
  readonly event: DebugEvent;
  readonly state?: number;
  readonly new_state?: number;
}

const EIO = 5;
const SECTOR = 512;
const FIRST_STATE = 1;

export class Rules {
  #errors: readonly InjectError[];
  readonly #states: readonly SetState[];
  #active: readonly InjectError[] = [];
  #state = FIRST_STATE;

  constructor(errors: readonly InjectError[], states: readonly SetState[]) {
    this.#errors = errors;
    this.#states = states;
  }

  get state(): number {
    return this.#state;
  }

  reach(event: DebugEvent): void {
    const state = this.#state;
    const applies = (rule: InjectError | SetState): boolean =>
      rule.event === event && ((rule.state ?? 0) === 0 || rule.state === state);
    const errors = this.#errors.filter(applies);
    if (errors.length > 0) this.#active = errors;
    // Of several the first one has the last word.
    const next = this.#states.find(applies);
    if (next) this.#state = next.new_state ?? 0;
  }

  /** The errno that a request fails with; 0 for none. A flush is for no bytes. */
  errorOf(type: IoType, at: Offset, length: Bytes): number {
    const rule = this.#active.find(({ iotype, sector = -1 }) => {
      const here = sector === -1 || (length > 0 && sector * SECTOR >= at && sector * SECTOR < at + length);
      return here && (iotype === undefined ? type !== 'block-status' : iotype === type);
    });
    if (!rule) return 0;
    const errno = rule.errno ?? EIO;
    if (errno !== 0 && rule.once) {
      this.#active = this.#active.filter((other) => other !== rule);
      this.#errors = this.#errors.filter((other) => other !== rule);
    }
    return errno;
  }
}
