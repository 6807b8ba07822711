/** What crosses between a program's thread and an IOThread: one entry a method. Plain data only. */
import type { LoopStats, SocketAddress } from '../aio/backend.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockdevOptions } from './options.ts';

export interface OpenMessage {
  readonly options: BlockdevOptions;
  /** What the image is called in messages. */
  readonly name: string;
  readonly writethrough: boolean;
  /** Nobody said what the format is: refuse an image that looks like another format than raw. */
  readonly probed: boolean;
}

/** How an open disk looks from outside. */
export interface OpenReply {
  readonly disk: number;
  readonly size: Bytes;
  readonly readOnly: boolean;
  readonly nodeName: string;
}

/** A range of a disk and a place in the shared arena. */
export interface TransferMessage {
  readonly disk: number;
  readonly at: Offset;
  readonly length: Bytes;
  /** Offset in the arena. */
  readonly room: Offset;
  readonly flags: number;
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
}

export interface NbdStartMessage {
  readonly listen: SocketAddress | { readonly kind: 'fd'; readonly fd: number };
  /** Mode of the unix socket's file. */
  readonly mode: number | undefined;
  readonly exports: readonly ExportMessage[];
  readonly maxConnections: number | undefined;
  readonly handshakeSeconds: number | undefined;
  readonly byteBudget: number | undefined;
}

export interface NbdStartReply {
  readonly service: number;
  readonly addresses: readonly SocketAddress[];
}

/** Totals since the service began. Bytes are payload. */
export interface NbdStats {
  readonly clients: number;
  readonly connections: number;
  readonly requests: number;
  readonly errors: number;
  readonly bytesRead: Bytes;
  readonly bytesWritten: Bytes;
}

export interface ThreadStats {
  readonly name: string;
  readonly backend: { readonly name: string; readonly detail: string };
  readonly loop: LoopStats;
  readonly disks: number;
  readonly services: number;
}

export interface Methods {
  memory: { args: { readonly buffer: SharedArrayBuffer }; result: undefined };
  open: { args: OpenMessage; result: OpenReply };
  close: { args: { readonly disk: number }; result: undefined };
  /** Answers the bytes read: fewer than asked at the end of the disk. */
  read: { args: TransferMessage; result: Bytes };
  write: { args: TransferMessage; result: undefined };
  flush: { args: { readonly disk: number }; result: undefined };
  zero: { args: RangeMessage; result: undefined };
  discard: { args: RangeMessage; result: undefined };
  status: { args: RangeMessage; result: BlockExtent[] };
  truncate: { args: { readonly disk: number; readonly size: Bytes }; result: Bytes };
  stat: { args: { readonly disk: number }; result: StatReply };
  'nbd-start': { args: NbdStartMessage; result: NbdStartReply };
  'nbd-add': { args: { readonly service: number; readonly export: ExportMessage }; result: undefined };
  'nbd-remove': {
    args: { readonly service: number; readonly name: string; readonly mode: 'safe' | 'hard' };
    result: undefined;
  };
  'nbd-stop': { args: { readonly service: number; readonly graceMs: number }; result: NbdStats };
  'nbd-stats': { args: { readonly service: number }; result: NbdStats };
  stats: { args: undefined; result: ThreadStats };
}

export type Method = keyof Methods;
