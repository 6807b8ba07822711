import type { Bytes } from '../base/units.ts';
import type { Disk } from './disk.ts';
import { runJob } from './disk-jobs.ts';
import type { JobWatch } from './follow-job.ts';

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
  const { base, backingFile, speed = 0 } = options;
  await runJob(disk, 'stream', options, (engine) =>
    engine.call('job-stream', { disk: disk.id, base, backingFile, speed }),
  );
}
