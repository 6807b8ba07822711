/**
 * Blockplane: disk images and NBD for Node.js, each disk in an I/O thread of its own choosing, outside any global lock.
 *
 * ```ts
 * import { open, serveNbd } from 'blockplane';
 *
 * await using disk = await open('disk.img');
 * await disk.write(new TextEncoder().encode('hello'), 0, 5, 0);
 * await disk.flush();
 * await using service = await serveNbd(disk, { host: '127.0.0.1', port: 10809 });
 * ```
 */
export type { SocketAddress } from './aio/backend.ts';
export { type GlobalMutexStats, globalMutex } from './aio/global-mutex.ts';
export type { ContextStats } from './aio/loop-counters.ts';
export { BlockError, type ErrnoName, type ErrorPlace } from './base/errors.ts';
export type { IoStats, KindStats } from './block/io-counters.ts';
export {
  type AttachOptions,
  BlkHandle,
  type ChannelStats,
  drainHandles,
  type HandleDrained,
  type IoOptions,
} from './channel/handle.ts';
export type { BlkDescriptor } from './channel/layout.ts';
export { BlkKind, BlkOp } from './channel/op.ts';
export type { SharedRegion } from './channel/region.ts';
export type { Abortable } from './lib/abort.ts';
export type { BitmapInfo, DirtyExtent } from './lib/bitmap-messages.ts';
export type { AddBitmapOptions, DiskBitmaps } from './lib/bitmaps.ts';
export { type CopyOptions, type CopySettings, copy } from './lib/copy.ts';
export { Disk, type ReadResult, type WriteResult, type ZeroOptions } from './lib/disk.ts';
export type { BufferOptions, Position } from './lib/disk-args.ts';
export type { DiskBackupOptions, DiskCommitOptions, DiskMirrorOptions, ReadyOptions } from './lib/disk-jobs.ts';
export type { DiskSnapshots } from './lib/disk-snapshots.ts';
export type { DiskStat } from './lib/disk-stat.ts';
export type { JobWatch } from './lib/follow-job.ts';
export type {
  AmendOptions,
  CheckOptions,
  CheckResult,
  EncryptOptions,
  ImageOptions,
  Preallocation,
  SnapshotInfo,
  TruncateOptions,
} from './lib/image-options.ts';
export { type CheckImageOptions, type CreateOptions, check, create, type EngineOptions } from './lib/images.ts';
export { type ImageInfo, inspect, type Qcow2Info, type StoredBitmap } from './lib/inspect.ts';
export { IOThread, type IOThreadOptions } from './lib/iothread.ts';
export type { JobProgress } from './lib/job-messages.ts';
export type { ListenTarget } from './lib/listen.ts';
export type { BlockExtent, NbdStats, ThreadStats, VhostUserStats } from './lib/messages.ts';
export { type DiskExport, type ExportOptions, NbdService, type ServeNbdOptions, serveNbd } from './lib/nbd.ts';
export type { SecretOptions } from './lib/objects/secret.ts';
export { type ObjectInfo, ObjectStore } from './lib/objects/store.ts';
export type { ObjectOptions } from './lib/objects/types.ts';
export { type OpenOptions, open } from './lib/open.ts';
export type {
  BlockdevOptions,
  CacheMode,
  CustomOptions,
  DetectZeroes,
  Discard,
  FileOptions,
  Format,
  HttpOptions,
  HttpSettings,
  NbdOptions,
  NodeOptions,
  NullOptions,
  Qcow2Options,
  Qcow2Settings,
  RawOptions,
  TargetOptions,
  VirtioBlkVhostUserOptions,
} from './lib/options.ts';
export { customNode } from './lib/options.ts';
export type { ReferenceOptions, References } from './lib/reference-policy.ts';
export type { DiskStreamOptions } from './lib/stream.ts';
export type { DiskReadStream, DiskWriteStream, ReadStreamOptions, StreamOptions } from './lib/streams.ts';
export type { NbdServerAddress } from './lib/uri.ts';
export { type ServeVhostUserOptions, serveVhostUser, VhostUserService } from './lib/vhost-user.ts';
