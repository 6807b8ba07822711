import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { Disk } from './disk.ts';
import { followJob, type JobWatch } from './follow-job.ts';

export interface DiskStreamOptions extends JobWatch {
  /** Node-name, or the name of the file, of the layer that stays below. Default: none does. */
  readonly base?: string | undefined;
  /** What the image is to call `base`. Default: its file, by a relative name where that is in the image's directory. */
  readonly backingFile?: string | undefined;
  /** Bytes a second at most. Default: as fast as it goes. */
  readonly speed?: Bytes | undefined;
}

/** See Disk.stream. */
export async function streamDisk(disk: Disk, options: DiskStreamOptions): Promise<void> {
  const { base, backingFile, speed = 0, signal, onProgress } = options;
  signal?.throwIfAborted();
  const closing = new AbortController();
  const given = signal ? AbortSignal.any([signal, closing.signal]) : closing.signal;
  const why = new BlockError(Errno.ECANCELED, `Could not stream '${disk.name}' to its end: it was closed`);
  const independent = disk.dependOn(async () => closing.abort(why));
  const release = disk.hold();
  try {
    // It does not move while the job runs.
    const { iothread } = disk;
    const job = await iothread.call('job-stream', { disk: disk.id, base, backingFile, speed });
    await followJob(iothread, job, { signal: given, onProgress });
  } finally {
    release();
    independent();
  }
}
