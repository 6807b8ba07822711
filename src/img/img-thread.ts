/** The inside of the thread that works on images for programs: the functions of this room as methods. */
import type { CallHandler, Furnished, SetupThread } from '../aio/iothread-worker.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import { nameThread } from '../block/registry.ts';
import { builtinDrivers } from '../lib/builtin-drivers.ts';
import { ObjectStore } from '../lib/objects/store.ts';
import { amendImage } from './amend.ts';
import { bench } from './bench.ts';
import { changeBitmap } from './bitmap.ts';
import { commit } from './commit.ts';
import { compare } from './compare.ts';
import { convert } from './convert.ts';
import { CreationOptions } from './creation-options.ts';
import { copyPart } from './dd.ts';
import type { ConvertCall, Creation, ImgArgs, ImgEvents, ImgMethod, ImgResult, PlainHow, Run } from './img-messages.ts';
import { chainInfo, imageInfo } from './info.ts';
import { type MapExtent, mapImage } from './map.ts';
import { measureEmpty, measureImage } from './measure.ts';
import { withImage } from './open.ts';
import { rebase } from './rebase.ts';
import { resizeImage } from './resize.ts';
import { changeSnapshots } from './snapshot.ts';

/** Between two tellings of progress. */
const TELL_MS = 100;

/** What a method is given besides its arguments. */
interface Given {
  readonly objects: ObjectStore | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (current: Bytes, total: Bytes) => void;
  tell<E extends keyof ImgEvents>(event: E, what: Omit<ImgEvents[E], 'run'>): void;
}

type Methods = {
  readonly [M in ImgMethod]: (args: ImgArgs<M>, given: Given) => Promise<ImgResult<M>>;
};

export function setup(thread: SetupThread): Furnished {
  nameThread(thread.threadId);
  builtinDrivers();
  const { context } = thread;
  const opened = (how: PlainHow, { objects }: Given) => ({ ...how, objects });
  const methods: Methods = {
    info: ({ image, how }, given) => imageInfo(context, image, opened(how, given)),
    chain: ({ image, how }, given) => chainInfo(context, image, opened(how, given)),
    convert: (call, given) => convert(context, conversion(call, given)),
    map: ({ image, how, start, length, most }, given) =>
      withImage(context, image, opened(how, given), async (blk) => {
        const extents: MapExtent[] = [];
        for await (const extent of mapImage(blk, { start, length })) {
          extents.push(extent);
          if (extents.length === most) break;
          given.signal?.throwIfAborted();
        }
        return extents;
      }),
    compare: ({ how, ...rest }, given) => compare(context, { ...rest, ...given, how: opened(how, given) }),
    resize: ({ image, how, ...rest }, given) => resizeImage(context, image, { ...opened(how, given), ...rest }),
    snapshot: ({ image, how, ...rest }, given) => changeSnapshots(context, image, { ...opened(how, given), ...rest }),
    rebase: ({ how, ...rest }, given) => rebase(context, { ...rest, ...given, how: opened(how, given) }),
    commit: ({ how, ...rest }, given) => commit(context, { ...rest, ...given, how: opened(how, given) }),
    async measure({ image, how, create }, given) {
      const options = creation(create);
      if (image === undefined) return measureEmpty(options, given.objects);
      return await measureImage(context, image, options, opened(how, given));
    },
    dd: ({ target, create, sourceHow, ...rest }, given) =>
      copyPart(
        context,
        {
          ...{ ...rest, signal: given.signal, onProgress: given.onProgress },
          sourceHow: opened(sourceHow, given),
          target: { name: target, format: create.format },
        },
        (size) => creation(create, size),
      ),
    bitmap: ({ image, how, name, ...rest }, given) =>
      changeBitmap(context, image, name, { ...opened(how, given), ...rest }).catch((error: unknown) => {
        // What went wrong crosses to the caller, and which action it was does not.
        throw error instanceof Error && error.cause instanceof BlockError ? error.cause : error;
      }),
    amend: ({ image, how, changes }, given) => amendImage(context, image, () => changes, opened(how, given)),
    bench: ({ how, ...rest }, given) => bench(context, { ...rest, signal: given.signal, how: opened(how, given) }),
  };
  return { handlers: handlersOf(thread, methods) };
}

function handlersOf(thread: SetupThread, methods: Methods): Record<string, CallHandler> {
  const handlers: Record<string, CallHandler> = {};
  for (const [name, method] of Object.entries(methods)) {
    const call = method as (args: object, given: Given) => Promise<unknown>;
    handlers[name] = async ({ run, objects, ...args }: Run, signal?: AbortSignal) => {
      let told = 0;
      const tell: Given['tell'] = (event, what) => thread.emit(event, { ...what, run });
      const onProgress = (current: Bytes, total: Bytes): void => {
        const now = performance.now();
        if (current < total && now - told < TELL_MS) return;
        told = now;
        tell('progress', { current, total });
      };
      return await call(args, { objects: await storeOf(objects), signal, onProgress, tell });
    };
  }
  return handlers;
}

async function storeOf(objects: Run['objects']): Promise<ObjectStore | undefined> {
  if (objects === undefined || objects.length === 0) return undefined;
  const store = new ObjectStore();
  for (const one of objects) await store.add(one);
  return store;
}

function conversion({ create, salvage, bitmaps, sourceHow, targetHow, ...rest }: ConvertCall, given: Given) {
  const { objects, signal, onProgress, tell } = given;
  const onBroken = bitmaps === 'skip' ? (name: string) => tell('broken-bitmap', { name }) : undefined;
  return {
    ...{ ...rest, signal, onProgress, sourceHow: { ...sourceHow, objects }, targetHow: { ...targetHow, objects } },
    ...(create ? { create: (size: Bytes) => creation(create, size) } : {}),
    ...(salvage ? { salvage: (at: number, { errno }: BlockError) => tell('salvaged', { at, errno }) } : {}),
    ...(bitmaps ? { bitmaps: { onBroken } } : {}),
  };
}

/** The options of a new image by the names that image tools have for them. EINVAL for one that there is not. */
function creation({ format, options: given }: Creation, size?: Bytes): CreationOptions {
  const options = new CreationOptions(format);
  for (const [name, value] of Object.entries({ ...given, ...(size === undefined ? {} : { size }) })) {
    const known = name.startsWith('encrypt.') ? name : name.replaceAll('-', '_');
    if (!options.has(known)) {
      throw new BlockError(Errno.EINVAL, `Could not use '${known}': images of format '${format}' have no such option`);
    }
    options.set(known, typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value));
  }
  return options;
}
