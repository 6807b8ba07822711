/** The inside of every IOThread: registers the drivers and answers what disk.ts and nbd.ts ask. */

import type { Furnished, SetupThread } from '../aio/iothread-worker.ts';
import { everyStep } from '../base/every-step.ts';
import { nameThread, onDamage } from '../block/registry.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import { loadDrivers } from './driver-loader.ts';
import { HeldNodes } from './held-nodes.ts';
import { imageHandlers } from './image-handlers.ts';
import type { Method, MethodArgs, MethodResult, ThreadStats } from './messages.ts';
import type { DamageEvent } from './node-messages.ts';
import { bitmapHandlers } from './worker-bitmaps.ts';
import { WorkerDisks } from './worker-disks.ts';
import { WorkerJobs } from './worker-jobs.ts';
import { WorkerMoves } from './worker-moves.ts';
import { NamedNodes } from './worker-named.ts';
import { WorkerNbd } from './worker-nbd.ts';
import { WorkerVhostUser } from './worker-vhost-user.ts';

type Handlers = { readonly [M in Method]: (args: MethodArgs<M>) => Promise<MethodResult<M>> };

export function setup(thread: SetupThread): Furnished {
  nameThread(thread.threadId);
  onDamage((damage) => thread.emit('damage', { service: 0, ...damage } satisfies DamageEvent));
  builtinDrivers();
  const disks = new WorkerDisks(thread.context, thread.threadId);
  let services = 0;
  const newId = (): number => ++services;
  const nbd = new WorkerNbd(thread, disks, newId);
  const vhostUser = new WorkerVhostUser(thread, disks, newId);
  const held = new HeldNodes(thread);
  const moves = new WorkerMoves(thread, disks, held, [nbd.services, vhostUser]);
  const jobs = new WorkerJobs(disks);
  const named = new NamedNodes(thread, disks, held);
  const handlers: Handlers = {
    drivers: ({ urls }) => {
      thread.context.foreign = true;
      return loadDrivers(urls);
    },
    ...imageHandlers(thread.context, disks, jobs),
    share: async ({ disk, offer }) => disks.introduce(disk, offer),
    guest: (args) => moves.run(() => disks.addGuest(args)),
    'guest-close': ({ disk }) => moves.run(() => disks.closeGuest(disk)),
    'move-ask': async (args) => moves.ask(args),
    'move-out': (args) => moves.run(() => moves.out(args)),
    'move-back': ({ move }) => moves.run(() => moves.back(move)),
    'move-in': (args) => moves.run(() => moves.in(args)),
    'move-commit': (args) => moves.run(() => moves.commit(args)),
    'move-done': ({ move }) => moves.run(() => moves.done(move)),
    'move-drop': ({ move }) => moves.run(() => moves.drop(move)),
    ...bitmapHandlers(disks),
    ...named.handlers,
    'nbd-start': (args) => nbd.start(args),
    'nbd-share': async ({ service }) => nbd.share(service),
    'nbd-add': async (args) => nbd.add(args.service, args.export),
    'nbd-adopt': (args) => nbd.adopt(args),
    'nbd-over': async (args) => nbd.over(args),
    'nbd-remove': (args) => nbd.remove(args.service, args.name, args.mode),
    'nbd-stop': (args) => nbd.stop(args.service, args.graceMs),
    'nbd-stats': async ({ service }) => nbd.stats(service),
    'vhost-user-start': (args) => vhostUser.start(args),
    'vhost-user-join': async (args) => vhostUser.join(args),
    'vhost-user-stop': ({ service }) => vhostUser.stop(service),
    'vhost-user-stats': async ({ service }) => vhostUser.stats(service),
    polling: async (options) => thread.context.polling.set(options),
    stats: async () => stats(thread, disks, nbd.services.count + vhostUser.services.count),
  };
  return {
    handlers: handlers as Furnished['handlers'],
    async stop() {
      await everyStep(
        () => moves.stop(),
        () => Promise.all([nbd.stopAll(), vhostUser.stopAll()]),
        () => jobs.stopAll(),
        () => named.stopJobs(),
        () => disks.closeAll(),
        () => held.close(),
      );
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
