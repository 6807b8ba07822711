/** For tests: a plain worker thread that schedules a bottom half of another thread's context again and again. */
import { parentPort, workerData } from 'node:worker_threads';
import type { RemoteBottomHalfHandle } from './bottom-half.ts';
import { type RemoteContextHandle, SharedWord } from './context-shared.ts';
import { RemoteContext } from './remote.ts';
import type { Mirror } from './testing-setup.ts';

export interface SenderTask extends Mirror {
  readonly remote: RemoteContextHandle;
  readonly bh: RemoteBottomHalfHandle;
  /** The word of `sent` and `seen` that is this sender's. */
  readonly index: number;
  readonly times: number;
}

export interface SenderReport {
  waits: number;
  /** What was wrong, if anything. */
  lost?: string;
}

/** Looks, 50 ms apart: the other sender may be held up after it has left work and before it wakes the context. */
const STUCK_LOOKS = 20;

/**
 * Whether the bottom half has run for everything sent. Within 50 ms, as a rule. When the machine is too busy for that,
 * the shared words tell a wake-up that is on its way from one that was lost: a context that goes on to count as asleep
 * although it has work pending will sleep on.
 */
function waitSeen({ seen, remote, index }: SenderTask, value: number, report: SenderReport): boolean {
  report.waits++;
  let stuck = 0;
  for (let ms = 0; ms < 5000; ms += 50) {
    const before = Atomics.load(seen, index);
    if (before === value || Atomics.wait(seen, index, before, 50) !== 'timed-out') {
      if (Atomics.load(seen, index) === value) return true;
      continue;
    }
    if (Atomics.load(seen, index) === value) return true;
    const { shared } = remote;
    const asleep = Atomics.load(shared, SharedWord.SLEEPING) === 1;
    stuck = asleep && Atomics.load(shared, SharedWord.REMOTE_PENDING) === 1 ? stuck + 1 : 0;
    if (stuck === STUCK_LOOKS) {
      report.lost = `the context sleeps with work pending at ${value}`;
      return false;
    }
  }
  report.lost = `still not run at ${value} after 5 s`;
  return false;
}

function send(task: SenderTask): SenderReport {
  const context = new RemoteContext(task.remote);
  const report: SenderReport = { waits: 0 };
  // Bursts of 1 to 64, of a length that differs between the senders: the context is met awake, asleep and in between.
  let burst = 1;
  let state = 12345 + task.index;
  for (let i = 1; i <= task.times; i++) {
    Atomics.store(task.sent, task.index, i);
    context.schedule(task.bh);
    if (--burst > 0) continue;
    if (!waitSeen(task, i, report)) return report;
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    burst = 1 + ((state >>> 16) % 64);
  }
  waitSeen(task, task.times, report);
  return report;
}

parentPort?.postMessage(send(workerData as SenderTask));
