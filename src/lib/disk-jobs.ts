/** Jobs of a disk: commit, mirror and backup. What runs in its IOThread is in worker-jobs.ts. */
import { existsSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { Disk } from './disk.ts';
import { followJob, type JobWatch } from './follow-job.ts';
import { driverOptions, type ImageOptions } from './image-options.ts';
import { createIn, type Engine } from './images.ts';
import { openMessage } from './open-message.ts';
import { type BlockdevOptions, formatByName, type TargetOptions } from './options.ts';
import type { ReferenceOptions } from './reference-policy.ts';

/** What becomes of a job once there is nothing left to copy but what the program writes meanwhile. */
export interface ReadyOptions {
  /** Asked once the job is ready; until it has answered the job keeps up with what is written. `complete` (default):
   *  the disk goes on with the other image. `cancel`: it goes on as it is, and the other image is what the disk is now.
   *  */
  readonly onReady?: (() => 'complete' | 'cancel' | Promise<'complete' | 'cancel'>) | undefined;
}

export interface DiskCommitOptions extends JobWatch, ReadyOptions {
  /** Node-name, or the name of the file, of the layer that takes in those above it. Default: the lowest. */
  readonly base?: string | undefined;
  /** The same of the highest layer that is committed. Default: the active one, which the disk does not need any more.
   *  */
  readonly top?: string | undefined;
  /** What the layer over `top` is to call `base`. Default: its file, by a relative name where that is in its directory.
   *  */
  readonly backingFile?: string | undefined;
  /** Bytes a second at most. Default: as fast as it goes. */
  readonly speed?: Bytes | undefined;
}

/** How the target of a job is opened, and made. */
interface IntoOptions extends JobWatch, ReferenceOptions, Omit<TargetOptions, 'readOnly'> {
  /** What a target that is made is like, its size apart. */
  readonly create?: Omit<ImageOptions, 'size'> | undefined;
  /** Bytes a second at most. Default: as fast as it goes. */
  readonly speed?: Bytes | undefined;
}

export interface DiskBackupOptions extends IntoOptions {
  /** All of the disk, what its active layer holds, what is dirty in `bitmap`, or, until it is given up, what is about
   *  to be written over. Default: `bitmap` where one is given, else `full`. */
  readonly sync?: 'full' | 'top' | 'bitmap' | 'none' | undefined;
  /** Name of a bitmap of the disk. Afterwards it holds what was written since. */
  readonly bitmap?: string | undefined;
  /** When it does. Default `on-success`. */
  readonly bitmapMode?: 'on-success' | 'never' | 'always' | undefined;
  /** Stored compressed; the target is a qcow2 image then. */
  readonly compress?: boolean | undefined;
}

export interface DiskMirrorOptions extends IntoOptions, ReadyOptions {
  /** All of the disk (default), what its active layer holds, or what is written from now on. */
  readonly sync?: 'full' | 'top' | 'none' | undefined;
  /** `write-blocking`: what is written to the disk has ended once it is in the target, too. Default background. */
  readonly copyMode?: 'background' | 'write-blocking' | undefined;
  /** Bytes that are copied again where one of them was written. */
  readonly granularity?: Bytes | undefined;
}

/** Runs a job of the disk, which stays where it is and open until its end. */
export async function runJob(
  disk: Disk,
  verb: string,
  options: JobWatch & ReadyOptions,
  start: (engine: Engine) => Promise<number>,
): Promise<void> {
  const { signal, onProgress, onReady } = options;
  signal?.throwIfAborted();
  const closing = new AbortController();
  const given = signal ? AbortSignal.any([signal, closing.signal]) : closing.signal;
  const why = new BlockError(Errno.ECANCELED, `Could not ${verb} '${disk.name}' to its end: it was closed`);
  const independent = disk.dependOn(async () => closing.abort(why));
  const release = disk.hold();
  try {
    // It does not move while the job runs.
    const { iothread } = disk;
    const job = await start(iothread);
    const ready = answerReady(iothread, job, onReady, closing);
    await followJob(iothread, job, { signal: given, onProgress });
    await ready;
  } finally {
    release();
    independent();
  }
}

/** Says how a job that is ready is to end. Nothing happens where it ends before. */
async function answerReady(
  engine: Engine,
  job: number,
  onReady: ReadyOptions['onReady'],
  closing: AbortController,
): Promise<void> {
  try {
    if (!(await engine.call('job-ready', { job }))) return;
    const verb = onReady ? await onReady() : 'complete';
    await engine.call('job-verb', { job, verb });
  } catch (error) {
    closing.abort(error);
  }
}

/** See Disk.commit. */
export async function commitDisk(disk: Disk, options: DiskCommitOptions): Promise<void> {
  const { base, top, backingFile, speed = 0 } = options;
  await runJob(disk, 'commit', options, (engine) =>
    engine.call('job-commit', { disk: disk.id, base, top, backingFile, speed }),
  );
}

/** See Disk.mirror. */
export async function mirrorDisk(
  disk: Disk,
  target: string | BlockdevOptions,
  options: DiskMirrorOptions,
): Promise<void> {
  const { sync = 'full', copyMode, granularity, speed = 0 } = options;
  await intoTarget(disk, target, options, (message, targetIsZero) =>
    runJob(disk, 'mirror', options, (engine) =>
      engine.call('job-mirror', {
        ...{ disk: disk.id, target: message, sync, copyMode, granularity, speed, targetIsZero },
      }),
    ),
  );
}

/** See Disk.backup. */
export async function backupDisk(
  disk: Disk,
  target: string | BlockdevOptions,
  options: DiskBackupOptions,
): Promise<void> {
  const { bitmap, sync = bitmap === undefined ? 'full' : 'bitmap', bitmapMode, compress, speed = 0 } = options;
  await intoTarget(disk, target, options, (message) =>
    runJob(disk, 'back up', options, (engine) =>
      engine.call('job-backup', { disk: disk.id, target: message, sync, bitmap, bitmapMode, compress, speed }),
    ),
  );
}

/** Runs `body` with what opens the target. A file that is not there is made, and goes again when `body` fails. */
async function intoTarget(
  disk: Disk,
  target: string | BlockdevOptions,
  options: IntoOptions,
  body: (message: ReturnType<typeof openMessage>, isNew: boolean) => Promise<void>,
): Promise<void> {
  options.signal?.throwIfAborted();
  const { create, format = typeof target === 'string' ? formatByName(target) : undefined } = options;
  const message = openMessage(target, { ...options, ...(format ? { format } : {}) });
  const made = typeof target === 'string' && !/^[a-z0-9+-]+:\/\//i.test(target) && !existsSync(target);
  if (made) await createIn(disk.iothread, target, driverOptions({ ...create, size: disk.size }), { format });
  try {
    await body(message, made);
  } catch (error) {
    if (made) await unlink(target).catch(() => undefined);
    throw error;
  }
}
