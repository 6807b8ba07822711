/** Copying a disk into another: what both opens, the job between them, and what is left when it fails. */
import { existsSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import type { Bytes } from '../base/units.ts';
import { checkedSparse, SPARSE_DEFAULT } from '../jobs/block-copy.ts';
import { followJob, type JobWatch } from './follow-job.ts';
import { HalfImage } from './half-image.ts';
import { driverOptions, type ImageOptions } from './image-options.ts';
import { createIn, type EngineOptions, type ImageEngine } from './images.ts';
import { useThread } from './iothread.ts';
import type { OpenMessage, OpenReply } from './messages.ts';
import { openMessage } from './open-message.ts';
import { type BlockdevOptions, type Format, formatByName, type TargetOptions } from './options.ts';
import type { ReferenceOptions } from './reference-policy.ts';

export interface CopySettings extends ReferenceOptions {
  /** How the source is opened. Default: as open() does, read-only. */
  readonly source?: Omit<TargetOptions, 'readOnly'> | undefined;
  /** How the destination is opened. */
  readonly destination?: Omit<TargetOptions, 'readOnly' | 'format'> | undefined;
  /** Format of the destination. Default: qcow2 for a name that ends with .qcow2, else raw. */
  readonly format?: Format | undefined;
  /** What a destination that is made is like, its size apart. */
  readonly create?: Omit<ImageOptions, 'size'> | undefined;
  /** Zeroes that the source holds as data are left out in units of this: a power of two from 512 to 262144 bytes, or 0
   *  to copy them. Default 4096. */
  readonly sparse?: Bytes | undefined;
  /** Bytes a second at most. Default: as fast as it goes. */
  readonly speed?: Bytes | undefined;
}

export interface CopyOptions extends CopySettings, EngineOptions, JobWatch {}

/**
 * Copies a disk, whole: whatever can be opened, into whatever can be written. A destination file that is not there is
 * made, and taken away again when the copy fails; one that is there is overwritten up to the source's size (ENOSPC when
 * it is smaller). Zeroes are not copied as data. It is on stable storage at the end. Both are opened in one IOThread,
 * and the data stays there.
 *
 * ```ts
 * await copy('disk.qcow2', 'disk.raw', { onProgress: ({ current, total }) => console.log(current / total) });
 * ```
 */
export async function copy(
  source: string | BlockdevOptions,
  destination: string | BlockdevOptions,
  options: CopyOptions = {},
): Promise<void> {
  const use = await useThread(options.iothread, options.aio);
  try {
    await copyIn(use.thread, source, destination, options);
  } finally {
    await use.release();
  }
}

/** As {@link copy}, in an engine. */
export async function copyIn(
  engine: ImageEngine,
  source: string | BlockdevOptions,
  destination: string | BlockdevOptions,
  options: CopyOptions,
): Promise<void> {
  options.signal?.throwIfAborted();
  const sparse = checkedSparse(options.sparse ?? SPARSE_DEFAULT);
  const { references, allowDirectories } = options;
  const from = openMessage(source, { ...options.source, readOnly: true, references, allowDirectories });
  const format = options.format ?? (typeof destination === 'string' ? formatByName(destination) : undefined);
  const to = openMessage(destination, { ...options.destination, ...(format ? { format } : {}) });
  await using disks = new OpenDisks(engine);
  const { disk, size } = await disks.open(from);
  const made = isNewFile(destination);
  if (made) await createIn(engine, destination, driverOptions({ ...options.create, size }), { format });
  try {
    const target = await disks.open(to);
    const half = made ? HalfImage.of(destination, format ?? 'raw') : undefined;
    const { speed = 0 } = options;
    const job = await engine.call('job-copy', { source: disk, target: target.disk, sparse, targetIsZero: made, speed });
    await followJob(engine, job, options);
    await disks.close();
    half?.whole({ durable: true });
  } catch (error) {
    await disks.close().catch(() => undefined);
    if (made) await unlink(destination).catch(() => undefined);
    throw error;
  }
}

/** A file name, and nothing is there. */
function isNewFile(destination: string | BlockdevOptions): destination is string {
  return typeof destination === 'string' && !/^[a-z0-9+-]+:\/\//i.test(destination) && !existsSync(destination);
}

/** Disks that are closed together, the last opened first. */
class OpenDisks implements AsyncDisposable {
  readonly #engine: ImageEngine;
  readonly #open: number[] = [];

  constructor(engine: ImageEngine) {
    this.#engine = engine;
  }

  async open(message: OpenMessage): Promise<OpenReply> {
    const reply = await this.#engine.call('open', message);
    this.#open.push(reply.disk);
    return reply;
  }

  /** Closes all; throws what failed first. */
  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (let disk = this.#open.pop(); disk !== undefined; disk = this.#open.pop()) {
      await this.#engine.call('close', { disk }).catch((error: unknown) => failures.push(error));
    }
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close().catch(() => undefined);
  }
}
