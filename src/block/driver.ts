/**
 * The driver interface: what a driver writes, and what it may rely on. Presence is capability: what a node does not
 * define, `block/` emulates or refuses, decided once when the node opens.
 *
 * A **protocol** driver moves bytes (file, null-co, nbd). A **format** driver says where bytes are, with `map` and
 * `reserve`; `block/` moves them. A **filter** is a format whose map is the identity, or that does something on the
 * way.
 *
 * The block layer guarantees to every function below: ranges lie inside `length` (writes inside the length too, after a
 * truncate), offsets and lengths are aligned to `limits.alignment`, are not 0, and do not exceed `limits.maxTransfer`;
 * it runs in the node's home context; no call is made before open has resolved or after close was called.
 * In turn the driver throws (or rejects with) BlockError only, touches an iov only until its promise settles, and
 * neither waits for its own node nor calls it.
 */
import type { AioContext } from '../aio/context.ts';
import type { AioOp } from '../aio/op.ts';
import type { BlockError } from '../base/errors.ts';
import type { Iov, Memory } from '../base/memory.ts';
import type { PagedBits } from '../base/paged-bits.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BitmapStore } from './bitmap-store.ts';
import type { Breakpoints, DebugEvent, DebugListener } from './debug-points.ts';
import type { BlockStatus } from './status.ts';

export type { BitmapPart, BitmapStore, BitmapToStore, StoredBitmap } from './bitmap-store.ts';
export { type Breakpoints, DEBUG_EVENTS, type DebugEvent } from './debug-points.ts';
export type { BlockStatus } from './status.ts';

/** A value now, or a promise of it: `const m = f(); const v = m instanceof Promise ? await m : m;` */
export type MaybePromise<T> = T | Promise<T>;

/** Where a range of a node is. One mutable record, filled by `map`, with one call of `data` or `other`, and reused by
 *  its caller: nothing is allocated. */
export class Mapping {
  /**
   * - `data`: the same bytes as `child` at `at`;
   * - `zero`: reads as zeroes, whatever is below;
   * - `absent`: not in this layer: the `cow` child's bytes, else zeroes;
   * - `opaque`: only `preadv` can produce it (compressed, encrypted).
   */
  kind: 'data' | 'zero' | 'absent' | 'opaque' = 'absent';
  /** How many bytes from the asked offset this is true for: 1..want, and a multiple of the alignment. */
  length: Bytes = 0;
  child: Child | null = null;
  at: Offset = 0;
  /** Counts the extents in use; see OpenContext.grace. Set by the caller of `map`. */
  holder: { holds: number } | null = null;

  /** The extent counts as in use from here on, although an asynchronous `map` may resolve later. */
  data(length: Bytes, child: Child, at: Offset): void {
    if (this.holder !== null) this.holder.holds++;
    this.kind = 'data';
    this.length = length;
    this.child = child;
    this.at = at;
  }

  other(kind: 'zero' | 'absent' | 'opaque', length: Bytes): void {
    this.kind = kind;
    this.length = length;
    this.child = null;
    this.at = 0;
  }
}

/**
 * Why `map` is asked. `write` is stricter: it answers `data` only where those bytes may be overwritten in place with no
 * change of metadata, `opaque` where only `pwritev` can write them (encrypted), and anything else where the write must
 * go through `reserve` (or `pwritev`, for a driver without it).
 */
export type MapReason = 'read' | 'write' | 'status';

/**
 * Room set aside for one write: data goes from the caller's memory to `child` at `at`; `commit` links the metadata once
 * the data is down; disposing without commit gives the room back. While it lives, its host range is not reused.
 * The head margin goes to `at - head`, the tail margin to `at + length`.
 */
export interface Reservation extends AsyncDisposable {
  readonly length: Bytes;
  readonly child: Child;
  readonly at: Offset;
  /** Copy-on-write margins before and after the range, in bytes: block/ fills them from the layer below. */
  readonly head: Bytes;
  readonly tail: Bytes;
  commit(): MaybePromise<void>;
}

/** Bits of a request's flags. */
export const RequestFlags = {
  /** On stable storage when it completes. */
  FUA: 1,
  /** Zeroes may be written by deallocating. */
  MAY_UNMAP: 2,
  /** Fail with ENOTSUP rather than write zeroes the slow way. */
  NO_FALLBACK: 4,
  /** Order against every overlapping request. */
  SERIALISING: 8,
  /** With SERIALISING: EBUSY instead of waiting. */
  NO_WAIT: 16,
  /** Store it compressed: whole clusters of a format that can (`writeCompressed`), else ENOTSUP. */
  COMPRESSED: 32,
  /** Zeroes that the layer holds itself, even where it reads as zeroes only because nothing is below it now. */
  OWN: 64,
} as const;

export interface Limits {
  /** Requests are multiples of this; a power of two, 1..1 MiB. Default 1 (a format inherits its primary child's). */
  readonly alignment: Bytes;
  /** The caller's memory must be aligned to this (O_DIRECT), in address and length of every run; block/ copies what is
   *  not. A power of two up to 4096, default 1. */
  readonly memoryAlignment: Bytes;
  /** What status answers and preferred request sizes are multiples of; for NBD's preferred block size. */
  readonly optimal: Bytes;
  /** Largest single request; 0 for no limit. */
  readonly maxTransfer: Bytes;
  readonly maxZero: Bytes;
  readonly maxDiscard: Bytes;
  /** Only whole multiples of these reach `zero` and `discard` (but for the end of the node); what is left of a zero
   *  request is written, of a discard dropped. 0 for the alignment. */
  readonly zeroAlignment: Bytes;
  readonly discardAlignment: Bytes;
  /** Runs in one iov. */
  readonly maxIov: number;
}

/** How a node answers a block-status question about itself; for protocol nodes. */
export interface StatusResult {
  /** `hole`: there is no data, and what it reads as is not known. */
  kind: 'data' | 'zero' | 'hole';
  length: Bytes;
}

/** 'unsupported' is an expected refusal: block/ then emulates (zeroes) or ignores (discard). */
export type Supported = 'done' | 'unsupported';

/** I/O functions: any coroutine or callback in the node's home context. */
export interface NodeIo {
  /** Current size. Read before every request; a node that grows by itself updates it. */
  readonly length: Bytes;
  readonly limits?: Partial<Limits>;
  /** Native FUA in writes; otherwise block/ flushes after. Of a format: `map` answers a write with `data` only where
   *  the metadata that leads there is stable already. */
  readonly nativeFua?: boolean;
  /** True when it could only be opened read-only (auto-read-only). Read once, after open. */
  readonly readOnly?: boolean;

  /** Fills `out` for a range that starts at `at`, at most `want` bytes. Synchronous when the metadata is at hand. */
  map?(at: Offset, want: Bytes, why: MapReason, out: Mapping): MaybePromise<void>;
  reserve?(at: Offset, want: Bytes, flags: number): MaybePromise<Reservation>;

  /** Callback style, for protocols: completes `op` with bytes done or a negative errno, of which `op.failure` may say
   *  more; may be short (block/ goes on), 0 bytes read is the end. Never completes inside the call. */
  submitRead?(op: AioOp, iov: Iov, at: Offset): void;
  submitWrite?(op: AioOp, iov: Iov, at: Offset, flags: number): void;
  /** Callback style of `pwritev`, for a filter: where `map` says `opaque` and nothing has to be waited for first.
   *  Completes `op`, later, with all of the bytes or a negative errno. False: nothing has happened, and `pwritev`
   *  comes. */
  beginWrite?(op: AioOp, iov: Iov, at: Offset): boolean;
  /** For protocols: the descriptor of the file whose bytes are the node's, for other threads of this process; -1 where
   *  they must not use it. */
  readonly descriptor?: number;
  /** For protocols: true when the bytes were at hand and have been read, synchronously. False where somebody would have
   *  to wait; then they are asked for the usual way. */
  readNow?(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean;
  /** Coroutine style: all or nothing. A node has this or the callback style for each direction. */
  preadv?(at: Offset, iov: Iov): MaybePromise<void>;
  pwritev?(at: Offset, iov: Iov, flags: number): MaybePromise<void>;

  /** Stores a range compressed: whole clusters, but for the end of the node. EINVAL for anything else, before anything
   *  is written. */
  writeCompressed?(at: Offset, iov: Iov): MaybePromise<void>;
  /** Makes a range read as zeroes. `flags`: MAY_UNMAP, FUA, OWN. */
  zero?(at: Offset, length: Bytes, flags: number): MaybePromise<Supported>;
  discard?(at: Offset, length: Bytes): MaybePromise<Supported>;
  /** Advisory: the range will be read soon. Whatever comes of it, nobody is told. */
  prefetch?(at: Offset, length: Bytes): MaybePromise<void>;
  /** Everything completed before is on stable storage after. Children are flushed by block/ after it. */
  flush?(): MaybePromise<void>;
  /** A write by someone with the permission to resize has ended at `end`, beyond `length`. A node without this refuses
   *  such writes; one whose length follows its child's does nothing here. */
  grew?(end: Offset): void;
  /** Others may write to what it shows, behind its back: no flush is left out because nothing was written here. */
  readonly writtenElsewhere?: boolean;
  /** For protocols: which part of a range is data and which is known to be zeroes. */
  status?(at: Offset, want: Bytes, out: StatusResult): MaybePromise<void>;
  /** A range of its child, as it is: block status is whatever the child says. */
  readonly window?: boolean;
  /** In place of `map` and `status`, for a node that shows another BlockBackend as it is, layers included. */
  blockStatus?(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void>;
  /** Told of the points that requests on it, and those of its parents on their files, come to. */
  readonly debugEvent?: DebugListener;
}

/** Control functions: called by graph changes, open and close only, with no request in flight (drained). */
export interface NodeControl {
  /** No request is in flight on the range that comes or goes; others may be. Must be absent where it cannot be done.
   *  `settle`, of a format that grows, zeroes what would come to light in the range that comes: old bytes of its last
   *  block, and what is below. A driver that keeps its length in the image calls it once `length` is the new one, and
   *  stores that when the zeroes are stable; for any other it is called afterwards. */
  truncate?(length: Bytes, prealloc: 'off' | 'falloc' | 'full', settle: () => Promise<void>): MaybePromise<void>;
  info?(): MaybePromise<Record<string, unknown>>;
  /** Looks for damage in the image's metadata, and repairs it where asked to. */
  check?(fix: CheckFix): MaybePromise<CheckResult>;
  /** Changes what can be changed of an image that is there: the driver's own creation options by name. */
  amend?(changes: Readonly<Record<string, unknown>>): MaybePromise<void>;
  /** Takes away all that the image holds of the disk: what is below, or will be, is seen everywhere. Its size stays. */
  empty?(): MaybePromise<void>;
  /** The `cow` child is about to be taken away, and the image does not name it any more. Presence says that the node
   *  can do without. Synchronous. */
  dropBacking?(): void;
  /** There is a `cow` child from now on where there was none; what the image names is another matter. Synchronous. */
  takeBacking?(child: Child): void;
  /** Of a protocol: `cache.direct` from here on; limits, length and descriptor follow. Throws where it cannot be, with
   *  all as it was. Drained. Absent where it makes no difference. */
  setDirect?(direct: boolean): Promise<void>;
  readonly snapshots?: SnapshotControl;
  readonly breakpoints?: Breakpoints;
  /** Of a filter that keeps what the disk was when it was put there. */
  readonly pointInTime?: PointInTime;
  /** Of a format that keeps bitmaps in its image. */
  readonly bitmaps?: BitmapStore | undefined;
  /** Background activity of the driver's own stops, or may go on. Synchronous. */
  drainBegin?(): void;
  drainEnd?(): void;
  /** True while background activity of the driver's own is still in flight; polled by drain. */
  drainBusy?(): boolean;
  /** Called when what the parents need has changed, before it takes effect; throws to refuse it (locks: L7). */
  permissions?(perm: number, shared: number): MaybePromise<void>;
  /**
   * The node is about to go on in another thread, which opens it by its options (docs/CHANNELS.md, "Moving a tree").
   * What only memory holds is written, nothing on the disk is changed from here on, locks stay as they are. Answers
   * options that the open there is given beside, or instead of, the node's own. A node without this stays where it is.
   */
  inactivate?(): MaybePromise<Readonly<Record<string, unknown>>>;
  /** It is the only one again: here, because the other thread could not open it (what may have changed on the disk
   *  meanwhile is read again), or there, because it did. `anew`: another process had the image, and nothing of what was
   *  known of it counts. */
  activate?(anew?: boolean): MaybePromise<void>;
  close?(): MaybePromise<void>;
}

/** What check() may change: nothing, leaked clusters, everything. */
export type CheckFix = 'none' | 'leaks' | 'all';

/** Counts of clusters and problems, by the names of `qemu-img check --output=json`. */
export interface CheckResult {
  /** What could not be looked at. */
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  /** Clusters of the guest's disk, and how many of them have a place in the file. */
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  /** Where the last used cluster of the file ends. */
  imageEndOffset: Offset;
  /** One line for each problem, at most 1000 of them. */
  messages: string[];
}

export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  readonly vmStateSize: Bytes;
  /** Length of the disk when it was taken. */
  readonly diskSize: Bytes;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockSeconds: number;
  readonly vmClockNanoseconds: number;
  /** Instructions executed, where that was counted. */
  readonly icount?: number;
}

/** Internal snapshots. `which` is an id or a name; an id goes first. ENOENT where there is none. */
export interface SnapshotControl {
  list(): readonly SnapshotInfo[];
  create(name: string): Promise<SnapshotInfo>;
  /** The disk becomes what it was; the snapshot stays. */
  apply(which: string): Promise<void>;
  delete(which: string): Promise<SnapshotInfo>;
}

/** What has kept a range from being copied. */
export interface CopyFailure {
  readonly operation: 'read' | 'write';
  readonly error: BlockError;
}

/**
 * What a disk was at one moment, while it is written to: of a range that is about to change what it held is copied to
 * somewhere else first. Home thread. What is not asked to be kept can be read by nobody.
 */
export interface PointInTime {
  /** Bytes that are copied together. */
  readonly unit: Bytes;
  /** Bytes that have to be copied still, those on their way included. */
  readonly remaining: Bytes;
  /** Why it is lost; undefined while it is not. */
  readonly broken: BlockError | undefined;
  /** From here on nobody can say what the disk was. */
  break(error: BlockError): void;
  /** The target shows the disk where nothing has been copied, so what it reads as says nothing of what it holds. */
  readonly overDisk: boolean;
  /** RequestFlags of writes to where it is copied; more may be added. */
  writeFlags: number;
  /** Only the ranges that `each` visits are kept. Before anything is in flight on it. */
  keepOnly(each: (visit: (at: Offset, length: Bytes) => void) => void): void;
  /** A range need not be kept any more. */
  forget(at: Offset, length: Bytes): void;
  /** What has to be copied still of a range reads the same in the target: it is done. */
  settle(at: Offset, length: Bytes): void;
  /** Where the first range is from `from` on that has to be copied, at most `most` bytes of it; length 0 for none. */
  next(from: Offset, most: Bytes): { readonly at: Offset; readonly length: Bytes };
  /** A bit for each cluster that has to be copied still, and that nobody has begun with. */
  readonly bits: PagedBits;
  /** Clusters that have to be copied are, from here on: who writes to them waits. To be called once, at the end; not
   *  copied, they have to be copied again. */
  begin(at: Offset, length: Bytes): (copied: boolean) => void;
  /** Resolves once nothing is being copied. */
  settled(): Promise<void>;
  /** Reads what was there; EACCES for what is not kept. */
  read(at: Offset, iov: Iov): Promise<void>;
  status(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void>;
}

export interface DriverNode extends NodeIo, NodeControl {}

/** `target`: of a filter, what it writes for itself, besides what it shows. `snapshot`: what it once was is shown. */
export type ChildRole = 'primary' | 'data' | 'metadata' | 'cow' | 'filtered' | 'target' | 'snapshot';

/** Permissions on a node, as bits; see block/permissions.ts. */
export const Perm = { CONSISTENT_READ: 1, WRITE: 2, WRITE_UNCHANGED: 4, RESIZE: 8 } as const;
export const PERM_ALL = 15;

/** A driver's edge to a child node. All I/O of a driver goes through these; they run block/'s whole request way. */
export interface Child {
  readonly name: string;
  readonly role: ChildRole;
  readonly length: Bytes;
  readonly limits: Limits;
  readonly nodeName: string;
  /** Whole multiples of this can be stored compressed; 0 where nothing can. */
  readonly compressedUnit: Bytes;
  /** True when the bytes were at hand and have been read, without waiting; see NodeIo.readNow. For metadata. */
  readNow(at: Offset, memory: Memory, offset: Bytes, length: Bytes): boolean;
  /** Zeroes beyond the child's end. */
  read(at: Offset, iov: Iov): Promise<void>;
  /** For a filter that copies on read. How many bytes from `at` on the child's active layer holds itself; as a negative
   *  number, how many only the layers below it do. Synchronous when the metadata is at hand. */
  held(at: Offset, want: Bytes): MaybePromise<number>;
  /** Makes a range the active layer's own, as far as the layers down to number `last` (1: the active one) hold it;
   *  without it, all. The child reads as it did. */
  copyUp(at: Offset, length: Bytes, last?: number): Promise<void>;
  /** How many bytes from `at` on are known to read as zeroes; as a negative number, how many are not. */
  zeroes(at: Offset, want: Bytes): MaybePromise<number>;
  /** Where the bytes of a range are: backing layers included, both inside the child. */
  status(at: Offset, want: Bytes, out: BlockStatus): MaybePromise<void>;
  /** What the child keeps of what it once was, where it does. In flight on the child while it is read. */
  readonly pointInTime: PointInTime | undefined;
  /** The node of the other child is this one's, or somewhere below it. */
  isOver(other: Child): boolean;
  /** The number of the layer that the node of that name is or shows, for {@link copyUp}; 0 where it is none. */
  layer(nodeName: string): number;
  /** Beyond the child's end it grows, where the permission to resize is held. `flags`: RequestFlags. */
  write(at: Offset, iov: Iov, flags?: number): Promise<void>;
  writeZeroes(at: Offset, length: Bytes, flags?: number): Promise<void>;
  discard(at: Offset, length: Bytes): Promise<void>;
  flush(): Promise<void>;
  truncate(length: Bytes, prealloc?: 'off' | 'falloc' | 'full'): Promise<void>;
  /** A request has come to a point of its way: `const stop = child.point(..); if (stop !== undefined) await stop;` */
  point(event: DebugEvent): MaybePromise<void>;
}

/** A request of a driver's own on one of its children, callback style: one object for each that is in flight at a time,
 *  used again and again. `iov` is filled before each; it, and the memory in it, are the request's until `done`. */
export interface ChildRequest {
  readonly iov: Iov;
  /** More than the errno says of what went wrong, where there is more. */
  readonly failure: unknown;
  /** All of `iov`, inside the child. `done` is called with 0 or a negative errno, never inside the call. */
  read(child: Child, at: Offset): void;
  write(child: Child, at: Offset): void;
}

/** Options every node takes, by their QAPI names. */
export interface CommonOptions {
  readonly driver: string;
  readonly 'node-name'?: string;
  /** false: somebody else has the image as yet (block/inactive.ts). Default true. */
  readonly active?: boolean;
  readonly 'read-only'?: boolean;
  readonly 'auto-read-only'?: boolean;
  readonly 'force-share'?: boolean;
  readonly discard?: 'ignore' | 'unmap';
  readonly 'detect-zeroes'?: 'off' | 'on' | 'unmap';
  readonly cache?: { readonly direct?: boolean; readonly 'no-flush'?: boolean };
}

/** One option of a driver's own: the single source for validation, types of messages and help. A secret is a string
 *  that no message shows. */
export interface OptionSpec {
  /** 'group': a throttle group, by name or shared. */
  readonly type: 'string' | 'secret' | 'size' | 'number' | 'boolean' | 'enum' | 'node' | 'group' | 'list' | 'object';
  readonly values?: readonly string[];
  /** Of a list. */
  readonly element?: OptionSpec;
  /** Of an object. */
  readonly members?: Readonly<Record<string, OptionSpec>>;
  readonly required?: boolean;
  readonly help: string;
}

/** A throttle group that another thread has. */
export interface SharedThrottle {
  readonly name: string;
  readonly memory: SharedArrayBuffer;
}

/** A node's part in a throttle group. */
export interface ThrottleMember {
  /** True where requests of that direction may have to wait. */
  limits(write: boolean): boolean;
  /** Waits until a request may go. */
  take(write: boolean, length: Bytes): MaybePromise<void>;
  /** Nobody waits while the node is drained. */
  drain(drained: boolean): void;
  leave(): void;
}

export interface OpenContext {
  readonly aio: AioContext;
  readonly nodeName: string;
  /** May become true when a child is opened, with auto-read-only. */
  readonly readOnly: boolean;
  readonly common: CommonOptions;
  /** Somebody else has the image: nothing is written, and all of it is read again in `activate`. */
  readonly inactive?: boolean;
  /** Resolves (or returns, when there is nothing to wait for) once no request uses an extent that `map` gave before
   *  now: to be awaited between freeing a range in the metadata and giving it to somebody else. */
  grace(): MaybePromise<void>;
  /** A request for its hot path; see {@link ChildRequest}. */
  request(done: (error: number) => void): ChildRequest;
  /** To be called when `drainBusy` may have become false: whoever waits for that asks again. */
  quiet(): void;
  /** Puts the node into a throttle group, of this thread by name or of another, until it leaves. ENOENT, EEXIST. */
  joinThrottle(group: string | SharedThrottle): ThrottleMember;
  /** Calls `visit` with each dirty range of a bitmap of the node of that name. ENOENT, EINVAL (inconsistent). */
  dirtyRanges(node: string, bitmap: string, visit: (at: Offset, length: Bytes) => void): void;
  /** To be called when `length` has changed by itself: everybody above is told. */
  resized(): void;
  /** To be called once when what is in use is found damaged. `fatal`: nothing is written any more. */
  damaged(what: string, fatal: boolean): void;
  /** Opens (or refers to) the child named in the options under `name`; undefined when the options do not name it. */
  openChild(name: string, role: ChildRole): Promise<Child | undefined>;
}

export interface Driver<O extends object = Record<string, unknown>> {
  readonly name: string;
  readonly role: 'protocol' | 'format' | 'filter';
  /** The children it takes and their roles; their names are option names too. */
  readonly children?: Readonly<Record<string, ChildRole>>;
  readonly options: Readonly<Record<string, OptionSpec>>;
  /** Its nodes are part of something else: nobody finds them by name, or in a list. */
  readonly hidden?: boolean;
  /** Of a filter: its child's layers are copied up on its behalf, which changes nothing that is read. */
  readonly copiesUp?: boolean;
  /** Of a filter: permissions (Perm) on its child that it takes of its own, and that it does not share. `used`:
   *  somebody uses the disk that it shows. */
  claims?(options: CommonOptions, used: boolean): { readonly perm: number; readonly unshared: number };
  /** Of a filter: permissions (Perm) that its users need of it, and it does not need of its child for them. */
  readonly spares?: number;
  /** 0..100: how sure the driver is that an image that begins with `head` is its own. */
  probe?(head: Uint8Array, filename: string): number;
  open(context: OpenContext, options: O): MaybePromise<DriverNode>;
  /** Those of its options that an open node can be given others of: it is opened anew with them. */
  readonly reopenOptions?: readonly string[];
  /** What `create` takes; its help and validation. */
  readonly createOptions?: Readonly<Record<string, OptionSpec>>;
  /** Those of them that `amend` changes in an image that is there. */
  readonly amendOptions?: readonly string[];
  /** Makes an image in `context.file`, which is empty or may be overwritten, and flushes it. Options are checked
   *  against `createOptions` before. */
  create?(context: CreateContext, options: Readonly<Record<string, unknown>>): Promise<void>;
  /** Like NodeControl.check, of an image that is not open: one that is damaged may not open at all. Only its own file
   *  is there. */
  check?(context: CreateContext, fix: CheckFix): Promise<CheckResult>;
}

/** The files of an image that is made, or checked. */
export interface CreateContext {
  readonly aio: AioContext;
  /** May be written and resized, unless a check is to change nothing. */
  readonly file: Child;
  /** The external data file, where the format has one and the options ask for it. */
  readonly dataFile?: Child;
}
