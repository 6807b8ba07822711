/** For the tests of moves: threads, disks, and keeping one on the move. */
import type { TestContext } from 'node:test';
import { type BlockdevOptions, create, type Disk, IOThread, open } from '../src/index.ts';
import { scratch } from './harness.ts';

const MiB = 1024 * 1024;

export async function startThreads(t: TestContext, ...drivers: URL[]): Promise<readonly [IOThread, IOThread]> {
  const both = await Promise.all(['here', 'there'].map((name) => IOThread.start({ name, drivers })));
  t.after(() => Promise.allSettled(both.map((thread) => thread.stop())));
  return both as [IOThread, IOThread];
}

export async function openIn(t: TestContext, target: string | BlockdevOptions, iothread: IOThread): Promise<Disk> {
  const disk = await open(target, { iothread });
  t.after(() => disk.close());
  return disk;
}

export async function qcow2(t: TestContext, size = 4 * MiB): Promise<string> {
  const path = `${scratch(t)}/disk.qcow2`;
  await create(path, { size });
  return path;
}

/** Moves there and back until `over`; answers how often. */
export async function keepMoving(disk: Disk, threads: readonly IOThread[], over: () => boolean): Promise<number> {
  let moves = 0;
  while (!over()) await disk.setAioContext(threads[++moves % threads.length]!);
  return moves;
}
