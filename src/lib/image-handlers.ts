/** What a thread does with images and with disks that no other thread uses. Loads drivers as trees need them. */
import type { AioContext } from '../aio/context.ts';
import { amend, checkOpen } from '../block/control.ts';
import type { ImageMethod, MethodArgs, MethodResult } from './messages.ts';
import { probe } from './probe.ts';
import type { ThreadDisks } from './thread-disks.ts';
import { checkFile, makeImage, snapshots } from './worker-images.ts';
import type { WorkerJobs } from './worker-jobs.ts';

export type ImageHandlers = { readonly [M in ImageMethod]: (args: MethodArgs<M>) => Promise<MethodResult<M>> };

export function imageHandlers(context: AioContext, disks: ThreadDisks, jobs: WorkerJobs): ImageHandlers {
  return {
    open: (args) => disks.open(args),
    probe: ({ options, name }) => probe(context, options, name),
    close: ({ disk }) => disks.close(disk),
    flush: ({ disk }) => disks.blk(disk).flush(),
    zero: ({ disk, at, length, flags }) => disks.blk(disk).writeZeroes(at, length, flags),
    discard: ({ disk, at, length }) => disks.blk(disk).discard(at, length),
    status: (args) => disks.status(args),
    truncate: (args) => disks.truncate(args),
    stat: async ({ disk }) => disks.stat(disk),
    create: (args) => makeImage(context, args),
    'check-image': (args) => checkFile(context, args),
    check: ({ disk, fix }) => disks.control(disk, (blk) => checkOpen(blk, fix)),
    amend: ({ disk, changes }) => disks.control(disk, (blk) => amend(blk, changes)),
    snapshots: (args) => disks.control(args.disk, (blk) => snapshots(blk, args)),
    ...jobs.handlers,
  };
}
