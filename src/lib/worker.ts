/** The inside of every IOThread: registers the drivers and answers what disk.ts and nbd.ts ask. */
import type { Furnished, SetupThread } from '../aio/iothread-worker.ts';
import { amend, checkOpen } from '../block/control.ts';
import { nameThread } from '../block/registry.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import { loadDrivers } from './driver-loader.ts';
import type { Method, MethodArgs, MethodResult, ThreadStats } from './messages.ts';
import { probe } from './probe.ts';
import { bitmapHandlers } from './worker-bitmaps.ts';
import { WorkerDisks } from './worker-disks.ts';
import { checkFile, makeImage, snapshots } from './worker-images.ts';
import { WorkerJobs } from './worker-jobs.ts';
import { WorkerMoves } from './worker-moves.ts';
import { NamedNodes } from './worker-named.ts';
import { WorkerNbd } from './worker-nbd.ts';
import { WorkerVhostUser } from './worker-vhost-user.ts';

type Handlers = { readonly [M in Method]: (args: MethodArgs<M>) => Promise<MethodResult<M>> };

export function setup(thread: SetupThread): Furnished {
  nameThread(thread.threadId);
  builtinDrivers();
  const disks = new WorkerDisks(thread.context, thread.threadId);
  let services = 0;
  const newId = (): number => ++services;
  const nbd = new WorkerNbd(thread, disks, newId);
  const vhostUser = new WorkerVhostUser(thread, disks, newId);
  const moves = new WorkerMoves(thread, disks, [nbd.services, vhostUser]);
  const jobs = new WorkerJobs(disks);
  const named = new NamedNodes(thread, disks);
  const handlers: Handlers = {
    drivers: ({ urls }) => {
      thread.context.foreign = true;
      return loadDrivers(urls);
    },
    open: (args) => disks.open(args),
    probe: ({ options, name }) => probe(thread.context, options, name),
    close: ({ disk }) => disks.close(disk),
    share: async ({ disk, offer }) => disks.introduce(disk, offer),
    guest: (args) => disks.addGuest(args),
    'guest-close': ({ disk }) => disks.closeGuest(disk),
    'move-out': (args) => moves.run(() => moves.out(args)),
    'move-back': ({ disk }) => moves.run(() => moves.back(disk)),
    'move-in': (args) => moves.run(() => moves.in(args)),
    'move-commit': (args) => moves.run(() => moves.commit(args)),
    'move-done': ({ disk }) => moves.run(() => moves.done(disk)),
    'move-drop': ({ disk }) => moves.run(() => moves.drop(disk)),
    flush: ({ disk }) => disks.blk(disk).flush(),
    zero: ({ disk, at, length, flags }) => disks.blk(disk).writeZeroes(at, length, flags),
    discard: ({ disk, at, length }) => disks.blk(disk).discard(at, length),
    status: (args) => disks.status(args),
    truncate: (args) => disks.truncate(args),
    stat: async ({ disk }) => disks.stat(disk),
    create: (args) => makeImage(thread.context, args),
    'check-image': (args) => checkFile(thread.context, args),
    check: ({ disk, fix }) => disks.control(disk, (blk) => checkOpen(blk, fix)),
    amend: ({ disk, changes }) => disks.control(disk, (blk) => amend(blk, changes)),
    snapshots: (args) => disks.control(args.disk, (blk) => snapshots(blk, args)),
    ...bitmapHandlers(disks),
    ...jobs.handlers,
    ...named.handlers,
    'nbd-start': (args) => nbd.start(args),
    'nbd-share': async ({ service }) => nbd.share(service),
    'nbd-add': async (args) => nbd.add(args.service, args.export),
    'nbd-remove': (args) => nbd.remove(args.service, args.name, args.mode),
    'nbd-stop': (args) => nbd.stop(args.service, args.graceMs),
    'nbd-stats': async ({ service }) => nbd.stats(service),
    'vhost-user-start': (args) => vhostUser.start(args),
    'vhost-user-join': async (args) => vhostUser.join(args),
    'vhost-user-stop': ({ service }) => vhostUser.stop(service),
    'vhost-user-stats': async ({ service }) => vhostUser.stats(service),
    stats: async () => stats(thread, disks, nbd.services.count + vhostUser.services.count),
  };
  return {
    handlers: handlers as Furnished['handlers'],
    async stop() {
      await moves.stop();
      await Promise.all([nbd.stopAll(), vhostUser.stopAll()]);
      await jobs.stopAll();
      await named.stopJobs();
      await disks.closeAll();
      await named.stop();
    },
  };
}

function stats({ name, context }: SetupThread, disks: WorkerDisks, services: number): ThreadStats {
  const { backend } = context;
  return {
    name,
    backend: { name: backend.name, detail: backend.detail },
    loop: context.stats.snapshot(),
    disks: disks.count,
    services,
  };
}
