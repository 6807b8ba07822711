/**
 * Deferred calls: work that is cheaper done once for many requests (one submission, one gather send), put off to the
 * end of the section that makes them (SEMANTICS L5). Sections and calls belong to the thread, as every module variable
 * does.
 *
 * A section has no await in it: what other coroutines defer meanwhile would wait for its end. Nothing is allocated.
 */
import { assert } from '../base/assert.ts';

let depth = 0;
/** Deferred, not yet made: calls[i](keys[i]) for i in 0..count-1; all slots beyond are empty. */
let count = 0;
let calls: (((key: never) => void) | undefined)[] = [];
let keys: unknown[] = [];
/** The other pair of lists: the one that was filled is being worked off while a call may defer new ones. */
let spareCalls: typeof calls = [];
let spareKeys: unknown[] = [];

/** Begins a section; sections nest. */
export function deferBegin(): void {
  depth++;
}

/** Ends a section. At the end of the outermost one the calls are made, in the order in which they were first
 *  deferred. */
export function deferEnd(): void {
  assert(depth > 0, 'a deferred-call section ended that had not begun');
  // Calls that sections inside these calls defer are made here too, in the next round: still before the end returns.
  while (depth === 1 && count > 0) flush();
  depth--;
}

function flush(): void {
  const dueCalls = calls;
  const dueKeys = keys;
  const due = count;
  calls = spareCalls;
  keys = spareKeys;
  count = 0;
  spareCalls = dueCalls;
  spareKeys = dueKeys;
  for (let i = 0; i < due; i++) {
    const call = dueCalls[i] as (key: unknown) => void;
    const key = dueKeys[i];
    dueCalls[i] = undefined;
    dueKeys[i] = undefined;
    call(key);
  }
}

/** `call(key)` once at the end of the outermost section, however often it is asked for; at once outside of a
 *  section. */
export function deferCall<K>(call: (key: K) => void, key: K): void {
  if (depth === 0) {
    call(key);
    return;
  }
  for (let i = 0; i < count; i++) if (calls[i] === call && keys[i] === key) return;
  calls[count] = call;
  keys[count] = key;
  count++;
}

const SECTION: Disposable = { [Symbol.dispose]: deferEnd };

/** A section as a block: `using section = deferSection();`. */
export function deferSection(): Disposable {
  deferBegin();
  return SECTION;
}
