/** For tests: an IOThread's setup module with a handler for everything that can go well or wrong. */
import { threadId } from 'node:worker_threads';
import { Bug } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BottomHalf, RemoteBottomHalfHandle } from './bottom-half.ts';
import { coSleep } from './co-timeout.ts';
import type { AioContext } from './context.ts';
import type { RemoteContextHandle } from './context-shared.ts';
import type { Furnished, SetupThread } from './iothread-worker.ts';
import { Gate } from './op.ts';
import { RemoteContext } from './remote.ts';

export interface Mirror {
  readonly sent: Int32Array<SharedArrayBuffer>;
  readonly seen: Int32Array<SharedArrayBuffer>;
}

/** The handlers that fail, each in its own way. */
function failures(context: AioContext): Furnished['handlers'] {
  return {
    refuse: () => {
      throw new BlockError(Errno.ENOSPC, 'the disk is full', { where: { node: 'n0', at: 512 } });
    },
    typeError: () => {
      throw new TypeError('not that type');
    },
    unclonable: () => () => {},
    bug: () => {
      throw new Bug('a broken promise');
    },
    bottomHalfThrows: () => {
      context.oneshot(() => {
        throw new Bug('thrown in a bottom half');
      });
      return new Gate().promise;
    },
    exit: () => process.exit(7),
  };
}

export function setup({ context, emit, name }: SetupThread): Furnished {
  const halves: BottomHalf[] = [];
  const stopped = new Gate();
  emit('early', { name });
  const handlers = {
    echo: (args: unknown) => args,
    threadId: () => threadId,
    coroutines: () => context.coroutines,
    ...failures(context),
    /** Ends only when the setup is stopped. */
    untilStop: async () => {
      await stopped.promise;
      return 'stopped';
    },
    sleep: async (ns: number) => {
      await coSleep(context, ns).promise;
      return 'slept';
    },
    /** Ends when the caller aborts. */
    untilAbort: async (_args: unknown, signal?: AbortSignal) => {
      const gate = new Gate();
      signal?.addEventListener('abort', () => gate.open());
      await gate.promise;
      throw new BlockError(Errno.ECANCELED, 'as asked for');
    },
    emit: (payload: unknown) => emit('asked', payload),
    /** A bottom half that copies `sent` to `seen` and notifies. */
    mirror: ({ sent, seen }: Mirror) => {
      const bh = context.bottomHalf(() => {
        for (let i = 0; i < sent.length; i++) {
          const value = Atomics.load(sent, i);
          if (Atomics.exchange(seen, i, value) !== value) Atomics.notify(seen, i);
        }
      }, 'mirror');
      halves.push(bh);
      return bh.remote();
    },
    leak: () => {
      context.bottomHalf(() => {}, 'leaked');
    },
    keepAlive: () => {
      setInterval(() => {}, 1000);
    },
    /** A coroutine of this thread that is woken by another. */
    waitForOther: async () => {
      const gate = new Gate();
      const bh = context.bottomHalf(() => gate.open(), 'woken');
      emit('waiting', bh.remote());
      await gate.promise;
      bh.delete();
      return threadId;
    },
    scheduleOther: ({ remote, bh }: { remote: RemoteContextHandle; bh: RemoteBottomHalfHandle }) =>
      new RemoteContext(remote).schedule(bh),
  };
  return {
    handlers,
    stop() {
      for (const bh of halves) bh.delete();
      stopped.open();
    },
  };
}
