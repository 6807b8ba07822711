/** `iothread`: a thread for nodes, besides the one that is always there. */
import { BlockError, Errno } from '../../base/errors.ts';
import { IOThread } from '../../lib/iothread.ts';
import { ObjectKind, type ObjectType } from '../../lib/objects/object-type.ts';
import type { ObjectStore } from '../../lib/objects/store.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Nodes } from '../nodes.ts';

export const IOTHREAD = new ObjectKind<IOThread>('iothread', 'an iothread');

interface IOThreadOptions {
  readonly 'poll-max-ns'?: number;
  readonly 'poll-grow'?: number;
  readonly 'poll-shrink'?: number;
}

/** What the thread calls them. */
const POLLING: Readonly<Record<string, 'pollMaxNs' | 'pollGrow' | 'pollShrink'>> = {
  'poll-max-ns': 'pollMaxNs',
  'poll-grow': 'pollGrow',
  'poll-shrink': 'pollShrink',
};

/** Options that say how much is done at a time: the context decides that here. */
const IGNORED = {
  'aio-max-batch': { type: 'integer', help: 'the context decides' },
  'thread-pool-min': { type: 'integer', help: 'the context decides' },
  'thread-pool-max': { type: 'integer', help: 'the context decides' },
} as const;

export function iothreadType(nodes: Nodes, aio: 'ring' | 'pool' | undefined): ObjectType<IOThread> {
  return {
    name: 'iothread',
    kind: IOTHREAD,
    options: {
      'poll-max-ns': { type: 'integer', help: 'longest time to spin before sleeping, in ns' },
      'poll-grow': { type: 'integer', help: 'factor by which that grows; 0 for 2' },
      'poll-shrink': { type: 'integer', help: 'divisor by which it shrinks; 0 for none at all' },
      ...IGNORED,
    },
    async create(options, _objects, id) {
      const given = options as IOThreadOptions;
      for (const [property, value] of Object.entries(given)) assertCount(property, value);
      const thread = await IOThread.start({
        name: id,
        aio,
        pollMaxNs: given['poll-max-ns'],
        pollGrow: given['poll-grow'],
        pollShrink: given['poll-shrink'],
      });
      nodes.addThread(thread);
      return thread;
    },
    async set(thread, property, to) {
      if (typeof to !== 'number') throw new QmpError(`Invalid parameter type for '${property}', expected: integer`);
      assertCount(property, to);
      const option = POLLING[property];
      if (option !== undefined) await thread.call('polling', { [option]: to });
    },
    async remove(thread, id) {
      const { disks, services } = await thread.stats();
      if (nodes.isUsed(thread) || disks + services > 0)
        throw new BlockError(Errno.EBUSY, `object '${id}' is in use, can not be deleted`);
      nodes.removeThread(thread);
      await thread.stop();
    },
  };
}

function assertCount(property: string, value: unknown): void {
  if (typeof value !== 'number' || value >= 0) return;
  throw new QmpError(`${property} value must be in range [0, 9223372036854775807]`);
}

/** The thread of that name; undefined where there is none. */
export function iothreadOf(objects: ObjectStore, id: string): IOThread | undefined {
  try {
    return objects.get(id, IOTHREAD);
  } catch (error) {
    if (error instanceof BlockError) return undefined;
    throw error;
  }
}

/** `main-loop`: there is one anyway, and the context decides what these would say. */
export const mainLoopType: ObjectType<null> = {
  name: 'main-loop',
  kind: new ObjectKind<null>('main-loop', 'a main-loop'),
  options: IGNORED,
  create: () => null,
};
