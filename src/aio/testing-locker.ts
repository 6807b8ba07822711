/** For tests: a plain worker thread that takes a global mutex as its workerData says. */
import { parentPort, workerData } from 'node:worker_threads';
import { BlockError } from '../base/errors.ts';
import { GlobalMutex, globalMutex } from './global-mutex.ts';

export interface LockerTask {
  /** The mutex; without it the one that is inherited. */
  readonly mutex?: Int32Array<SharedArrayBuffer>;
  /** Word 0 is a count, made without atomics under the lock; the others say who came when. */
  readonly log: Int32Array<SharedArrayBuffer>;
  readonly id: number;
  readonly times: number;
  readonly limitMs?: number;
  /** Ends the thread while it holds the lock. */
  readonly die?: boolean;
}

export interface LockerReport {
  readonly error?: { readonly code: string; readonly message: string };
}

function take({ mutex: words, log, id, times, limitMs, die }: LockerTask): LockerReport {
  const mutex = words ? new GlobalMutex(words) : globalMutex();
  try {
    for (let i = 0; i < times; i++) {
      using _outer = mutex.lock(limitMs);
      using _inner = mutex.lock();
      log[0]!++;
      if (log[0]! < log.length) log[log[0]!] = id;
      if (die === true) process.exit(0);
    }
    return {};
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { error: { code: error.code, message: error.message } };
  }
}

parentPort?.postMessage(take(workerData as LockerTask));
