/** What crosses between a program's thread and an IOThread: one entry a method. Plain data only. */
import type { MessagePort } from 'node:worker_threads';
import type { LoopStats, SocketAddress } from '../aio/backend.ts';
import type { PollOptions } from '../aio/poll-policy.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { CheckFix, CheckResult, SnapshotInfo } from '../block/driver.ts';
import type { BlkDescriptor, BlkIdentity, ChannelOffer } from '../channel/layout.ts';
import type { BitmapReference } from '../exports/nbd/bitmaps.ts';
import type { HandedOver } from '../exports/nbd/export-list.ts';
import type { BitmapMethods } from './bitmap-messages.ts';
import type { JobMethods } from './job-messages.ts';
import type { MoveMethods } from './move-messages.ts';
import type { NodeJobMethods } from './node-job-messages.ts';
import type { NodeMethods } from './node-messages.ts';
import type { BlockdevOptions, Format } from './options.ts';
import type { ReferencePolicy } from './reference-policy.ts';
import type { TlsMessage } from './tls-options.ts';
import type { TransactionMethods } from './transaction-messages.ts';

export interface OpenMessage {
  readonly options: BlockdevOptions;
  /** What the image is called in messages. */
  readonly name: string;
  readonly writethrough: boolean;
  /** Nobody said what the format is: see probe.ts. */
  readonly probed: boolean;
  readonly policy: ReferencePolicy;
}

export interface CreateMessage {
  readonly format: Format;
  /** Files that are there. */
  readonly file: BlockdevOptions;
  readonly dataFile?: BlockdevOptions;
  /** By the names of the driver's creation options. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** Of an image that is not open. */
export interface CheckImageMessage {
  /** As of OpenMessage. */
  readonly options: BlockdevOptions;
  readonly name: string;
  readonly probed: boolean;
  readonly fix: CheckFix;
}

/** How an open disk looks from outside. */
export interface OpenReply {
  readonly disk: number;
  readonly size: Bytes;
  readonly readOnly: boolean;
  readonly nodeName: string;
  /** See block/io-counters.ts. */
  readonly counters: Float64Array<SharedArrayBuffer>;
}

/** Modules with drivers. */
export interface DriversMessage {
  readonly urls: readonly string[];
}

export interface DiskMessage {
  readonly disk: number;
}

export interface TruncateMessage extends DiskMessage {
  readonly size: Bytes;
  readonly preallocation?: 'off' | 'falloc' | 'full';
}

export interface CheckMessage extends DiskMessage {
  readonly fix: CheckFix;
}

export interface AmendMessage extends DiskMessage {
  /** By the names of the driver's creation options. */
  readonly changes: Readonly<Record<string, unknown>>;
}

export interface SnapshotMessage extends DiskMessage {
  /** `which`: the name of a new one, an id or a name of another. */
  readonly action: 'list' | 'create' | 'apply' | 'delete';
  readonly which: string;
}

/** `size`: the disk's afterwards. */
export interface SnapshotReply {
  readonly snapshots: readonly SnapshotInfo[];
  readonly size: Bytes;
}

/** A disk of another thread, for users in this one. */
export interface GuestMessage extends DiskMessage {
  readonly name: string;
  readonly descriptor: BlkDescriptor;
  /** See StatReply. */
  readonly optimal: Bytes;
}

/** A channel for a thread that wants to use the disk itself. */
export interface ShareMessage extends DiskMessage {
  readonly offer: ChannelOffer;
}

export interface RangeMessage {
  readonly disk: number;
  readonly at: Offset;
  readonly length: Bytes;
  readonly flags: number;
}

/** A range of one kind. `depth`: 0 nowhere, 1 in the top layer, 2 in the one below, ... */
export interface BlockExtent {
  readonly offset: Offset;
  readonly length: Bytes;
  readonly data: boolean;
  readonly zero: boolean;
  readonly allocated: boolean;
  readonly depth: number;
}

export interface StatReply {
  readonly size: Bytes;
  readonly readOnly: boolean;
  /** Preferred request size. */
  readonly optimal: Bytes;
  /** Requests that are multiples of this are not padded. */
  readonly alignment: Bytes;
}

export interface ExportMessage {
  readonly disk: number;
  readonly name: string;
  readonly description: string;
  readonly writable: boolean;
  /** Dirty bitmaps. */
  readonly bitmaps: readonly BitmapReference[];
  /** Between servers in several threads, one of which has the bitmaps (in the transfer list): the ways to those that
   *  ask it, or of one of these to it. */
  readonly bitmapPorts?: readonly MessagePort[] | undefined;
  readonly allocationDepth: boolean;
  readonly multiConn: boolean;
  /** Its clients are served in its home, not by the server that greets them. */
  readonly atHome?: boolean;
}

/** A client that has been greeted, for the server of its export's home ('hand-over'). */
export interface NbdHandOverEvent extends NbdServiceMessage {
  readonly token: number;
  /** Of the thread that tells of it, where it stays. */
  readonly fd: number;
  readonly handed: HandedOver;
}

export type NbdAdoptMessage = Omit<NbdHandOverEvent, 'token'>;

export interface NbdOverMessage extends NbdServiceMessage {
  readonly token: number;
  /** What it goes on from; undefined: it has gone. */
  readonly handed: HandedOver | undefined;
}

/** What a service tells of a client that has come or gone. */
export interface NbdClientEvent extends NbdServiceMessage {
  readonly peer: string;
  /** Connected now. */
  readonly clients: number;
  /** Clients whose handshake led to an export, since it began. */
  readonly handshakes: number;
}

export interface NbdStartMessage {
  readonly listen: readonly (SocketAddress | { readonly kind: 'fd'; readonly fd: number })[];
  /** Mode of the unix socket's file. */
  readonly mode: number | undefined;
  readonly exports: readonly ExportMessage[];
  readonly maxConnections: number | undefined;
  readonly handshakeSeconds: number | undefined;
  readonly byteBudget: number | undefined;
  readonly tls: TlsMessage | undefined;
}

export interface NbdStartReply {
  readonly service: number;
  readonly addresses: readonly SocketAddress[];
}

export interface NbdServiceMessage {
  readonly service: number;
}

export interface NbdAddMessage extends NbdServiceMessage {
  readonly export: ExportMessage;
}

export interface NbdRemoveMessage extends NbdServiceMessage {
  readonly name: string;
  readonly mode: 'safe' | 'hard';
}

export interface NbdStopMessage extends NbdServiceMessage {
  readonly graceMs: number;
}

/** What has gone through a service since it began. */
export interface NbdStats {
  /** Connected now. */
  readonly clients: number;
  /** Accepted in all. */
  readonly connections: number;
  readonly requests: number;
  /** Replies that were errors. */
  readonly errors: number;
  /** Bytes received from clients, and sent to them. */
  readonly bytesIn: Bytes;
  readonly bytesOut: Bytes;
}

/** What a vhost-user-blk device is, wherever its queues are. */
export interface VhostUserShape {
  readonly writable: boolean;
  readonly queues: number | undefined;
  readonly blockBytes: Bytes | undefined;
  readonly serial: string | undefined;
}

export interface VhostUserStartMessage extends DiskMessage {
  readonly listen: SocketAddress | { readonly kind: 'fd'; readonly fd: number };
  readonly mode: number;
  readonly shape: VhostUserShape;
  /** Other threads that have queues: the ways to them (in the transfer list), and by queue who, from 1 on; 0 is the
   *  thread itself. */
  readonly members: { readonly ports: readonly MessagePort[]; readonly placement: readonly number[] };
}

/** Queues of a device whose service is in another thread, on the other end of `port` (in the transfer list). */
export interface VhostUserMemberMessage extends DiskMessage {
  readonly shape: VhostUserShape;
  readonly port: MessagePort;
}

export interface VhostUserStartReply {
  readonly service: number;
  readonly address: SocketAddress;
}

export interface VhostUserServiceMessage {
  readonly service: number;
}

export interface VhostUserStats {
  /** A virtual machine is connected now. */
  readonly connected: boolean;
  /** Times that one has connected. */
  readonly connections: number;
}

export interface ThreadStats {
  readonly name: string;
  readonly backend: { readonly name: string; readonly detail: string };
  readonly loop: LoopStats;
  readonly disks: number;
  readonly services: number;
}

/** What a program's thread asks of an IOThread, and what it answers. */
/** What is done with images and disks where no other thread uses them. */
export interface ImageMethods extends JobMethods {
  open(args: OpenMessage): OpenReply;
  /** Answers the tree of an image of which nobody said what format it is. */
  probe(args: OpenMessage): BlockdevOptions;
  close(args: DiskMessage): void;
  flush(args: DiskMessage): void;
  zero(args: RangeMessage): void;
  discard(args: RangeMessage): void;
  status(args: RangeMessage): BlockExtent[];
  /** Answers the new size. */
  truncate(args: TruncateMessage): Bytes;
  stat(args: DiskMessage): StatReply;
  create(args: CreateMessage): void;
  'check-image'(args: CheckImageMessage): CheckResult;
  check(args: CheckMessage): CheckResult;
  amend(args: AmendMessage): void;
  /** Answers all of them, or the one that the action was about. */
  snapshots(args: SnapshotMessage): SnapshotReply;
}

export interface Methods
  extends BitmapMethods,
    ImageMethods,
    MoveMethods,
    NodeJobMethods,
    NodeMethods,
    TransactionMethods {
  drivers(args: DriversMessage): void;
  share(args: ShareMessage): BlkIdentity;
  guest(args: GuestMessage): void;
  'guest-close'(args: DiskMessage): void;
  'nbd-start'(args: NbdStartMessage): NbdStartReply;
  /** Listening sockets of the service once more, for a service in another thread, which they belong to. */
  'nbd-share'(args: NbdServiceMessage): NbdStartMessage['listen'];
  'nbd-add'(args: NbdAddMessage): void;
  /** Serves a client that another thread's server has greeted, to its end: see NbdServer.adopt. */
  'nbd-adopt'(args: NbdAdoptMessage): HandedOver | undefined;
  /** A client that was handed over has gone, or is handed back. */
  'nbd-over'(args: NbdOverMessage): void;
  'nbd-remove'(args: NbdRemoveMessage): void;
  'nbd-stop'(args: NbdStopMessage): NbdStats;
  'nbd-stats'(args: NbdServiceMessage): NbdStats;
  'vhost-user-start'(args: VhostUserStartMessage): VhostUserStartReply;
  'vhost-user-join'(args: VhostUserMemberMessage): void;
  'vhost-user-stop'(args: VhostUserServiceMessage): VhostUserStats;
  'vhost-user-stats'(args: VhostUserServiceMessage): VhostUserStats;
  stats(): ThreadStats;
  /** Spins so from now on; what is left out stays. */
  polling(args: PollOptions): void;
}

export type Method = keyof Methods;
export type ImageMethod = keyof ImageMethods;
export type MethodArgs<M extends Method> = Parameters<Methods[M]>[0];
export type MethodResult<M extends Method> = ReturnType<Methods[M]>;
