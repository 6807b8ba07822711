/**
 * libuv's loop of this thread, as the ring's loop needs it: the descriptor that becomes readable when libuv has work,
 * and when Node's next timer is due. All symbols are exported by the node binary itself.
 */
import { addressOf, native } from './lib.ts';

const UV_TIMER = 13;

export interface UvLoop {
  /** Readable when libuv has something to do (its epoll descriptor). */
  readonly fd: number;
  /**
   * Milliseconds until Node's next timer, Infinity without one. At most a wrong guess of 10 ms where it cannot be told.
   */
  timerDueMs(): number;
  /**
   * A number that differs from its last value when libuv has run something that may have given it new work since:
   * events of descriptors, or a timer.
   */
  activity(): number;
}

const UNKNOWN_TIMER_MS = 10;
/** struct uv_metrics_t: loop_count, events, events_waiting and reserved words, 64 bits each. */
const METRICS_BYTES = 128;
const METRICS_EVENTS_AT = 8;
const TIMER_RANGE = 2 ** 20;

/** The loop of the calling thread, or undefined where the node binary does not say (then the ring cannot be driven). */
export function uvLoop(): UvLoop | undefined {
  const lib = native();
  if (!lib) return undefined;
  const { koffi, library: self } = lib;
  try {
    const isolate = self.func('_ZN2v87Isolate10GetCurrentEv', 'void *', [])();
    const loop = self.func('_ZN4node19GetCurrentEventLoopEPN2v87IsolateE', 'void *', ['void *'])(isolate);
    const fd = self.func('uv_backend_fd', 'int', ['void *'])(loop) as number;
    if (fd < 0) return undefined;
    const handleType = self.func('uv_handle_get_type', 'int', ['uintptr_t']);
    const isActive = self.func('uv_is_active', 'int', ['uintptr_t']);
    const dueIn = self.func('uv_timer_get_due_in', 'uint64_t', ['uintptr_t']);
    const callback = koffi.pointer(koffi.proto('void (uintptr_t handle, uintptr_t data)'));
    const walk = self.func('uv_walk', 'void', ['void *', callback, 'uintptr_t']);
    const activeTimers = (): Set<number> => {
      const found = new Set<number>();
      const visit = (handle: number): void => {
        if (handleType(handle) === UV_TIMER && isActive(handle) !== 0) found.add(Number(handle));
      };
      walk(loop, visit, 0);
      return found;
    };
    // Node multiplexes all its timers on one uv_timer_t that lives as long as the environment: it is the one that
    // becomes active with the first setTimeout. Timers that were active before may belong to somebody who frees them.
    const before = activeTimers();
    const probe = setTimeout(() => {}, 1 << 30);
    const appeared = [...activeTimers()].filter((handle) => !before.has(handle));
    clearTimeout(probe);
    const timer = appeared.length === 1 ? appeared[0]! : 0;
    const metricsInfo = self.func('uv_metrics_info', 'int', ['void *', 'uintptr_t']);
    const now = self.func('uv_now', 'uint64_t', ['void *']);
    const metrics = new DataView(new SharedArrayBuffer(METRICS_BYTES));
    const metricsAddress = addressOf(new Uint8Array(metrics.buffer));
    const timerDueMs = (): number => {
      if (timer === 0) return UNKNOWN_TIMER_MS;
      return isActive(timer) === 0 ? Number.POSITIVE_INFINITY : Number(dueIn(timer));
    };
    return {
      fd,
      timerDueMs,
      activity: () => {
        metricsInfo(loop, metricsAddress);
        const due = timerDueMs();
        const timerAt = due === Number.POSITIVE_INFINITY ? 0 : Number(now(loop)) + due;
        return metrics.getUint32(METRICS_EVENTS_AT, true) * TIMER_RANGE + (timerAt % TIMER_RANGE);
      },
    };
  } catch {
    return undefined;
  }
}

/** True when others are in the queue with it: Node links its immediates, and says so nowhere else. */
export function hasNeighbour(immediate: NodeJS.Immediate | undefined): boolean {
  const { _idlePrev: before, _idleNext: after } = (immediate ?? {}) as { _idlePrev?: unknown; _idleNext?: unknown };
  return (before ?? after ?? null) !== null;
}
