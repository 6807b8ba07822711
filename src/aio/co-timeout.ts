/** Sleeping and waiting with a limit, for coroutines (SEMANTICS C9). */
import { BlockError, Errno } from '../base/errors.ts';
import type { Nanoseconds } from '../base/units.ts';
import type { AioContext } from './context.ts';
import { Gate } from './op.ts';

export interface Sleep {
  /** Resolves to true when the time is over, to false when `wake` ended it. */
  readonly promise: Promise<boolean>;
  /** Ends the sleep early; without effect once it is over. */
  wake(): void;
}

/** Sleeps `ns`, unless it is woken. */
export function coSleep(context: AioContext, ns: Nanoseconds): Sleep {
  const gate = new Gate<boolean>();
  const timer = context.timer(() => gate.open(true), 'sleep');
  timer.armIn(ns);
  return {
    promise: gate.promise,
    wake(): void {
      if (!timer.armed) return;
      timer.cancel();
      gate.open(false);
    },
  };
}

/**
 * Ends as `promise` does, or rejects with ETIMEDOUT `ns` from now. The work behind the promise is not cancelled: it
 * goes on, and how it ends then is dropped. `what` completes "Could not <what>".
 */
export function coTimeout<T>(
  context: AioContext,
  promise: Promise<T>,
  ns: Nanoseconds,
  what = 'wait any longer',
): Promise<T> {
  const gate = new Gate<T>();
  const timer = context.timer(() => {
    const message = `Could not ${what}: not done after ${Math.round(ns / 1e6)} ms`;
    gate.fail(new BlockError(Errno.ETIMEDOUT, message));
  }, 'timeout');
  timer.armIn(ns);
  promise.then(
    (value) => {
      if (!timer.armed) return;
      timer.cancel();
      gate.open(value);
    },
    (error: unknown) => {
      if (!timer.armed) return;
      timer.cancel();
      gate.fail(error);
    },
  );
  return gate.promise;
}
