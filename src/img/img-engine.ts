/** The caller's side of the thread that works on images: it starts with the first operation and ends with the last. */
import { IOThread } from '../aio/iothread.ts';
import type { Abortable } from '../lib/abort.ts';
import type { ImgArgs, ImgEvents, ImgMethod, ImgResult, Run } from './img-messages.ts';
import { Operation } from './operation.ts';

const EXTENSION = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
const SETUP = new URL(`./img-thread.${EXTENSION}`, import.meta.url);

/** What an operation wants to be told of besides its progress. */
export type Listeners = { readonly [E in keyof ImgEvents]?: ((event: ImgEvents[E]) => void) | undefined };

interface Shared {
  readonly starting: Promise<IOThread>;
  users: number;
}

let shared: Shared | undefined;
let runs = 0;
const listeners = new Map<number, Listeners>();

/** Has the thread do something. */
export function operation<M extends ImgMethod>(
  method: M,
  args: ImgArgs<M>,
  { signal, objects, ...heard }: Abortable & Pick<Run, 'objects'> & Listeners = {},
): Operation<ImgResult<M>> {
  return new Operation(async (tell) => {
    signal?.throwIfAborted();
    const run = ++runs;
    listeners.set(run, { ...heard, progress: tell });
    try {
      return await inThread((thread) => thread.call<ImgResult<M>>(method, { ...args, objects, run }, [], signal));
    } finally {
      listeners.delete(run);
    }
  });
}

/** Its life is that of whatever uses it. */
async function inThread<T>(body: (thread: IOThread) => Promise<T>): Promise<T> {
  shared ??= start();
  const used = shared;
  used.users++;
  try {
    return await body(await used.starting);
  } finally {
    if (--used.users === 0) {
      forget(used);
      // What it was asked for is done, or has said why not.
      await used.starting.then((thread) => thread.stop()).catch(() => undefined);
    }
  }
}

function start(): Shared {
  const entry: Shared = { starting: IOThread.start({ name: 'img', setup: SETUP }), users: 0 };
  entry.starting.then(
    (thread) => {
      thread.on('event', hear);
      thread.on('crash', () => forget(entry));
    },
    () => forget(entry),
  );
  return entry;
}

/** The next operation has a thread of its own. */
function forget(entry: Shared): void {
  if (shared === entry) shared = undefined;
}

function hear(name: string, payload: unknown): void {
  const event = payload as ImgEvents[keyof ImgEvents];
  const listener = listeners.get(event.run)?.[name as keyof ImgEvents] as ((what: object) => void) | undefined;
  listener?.(event);
}
