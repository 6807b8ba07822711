/** What crosses between a daemon and an IOThread about nodes by name: see worker-nodes.ts. */
import type { Bytes, Offset } from '../base/units.ts';
import type { SnapshotInfo } from '../block/driver.ts';
import type { DiscardCounts } from '../block/node.ts';
import type { Damage } from '../block/registry.ts';
import type { BitmapInfo } from './bitmap-messages.ts';
import type { OpenReply } from './messages.ts';
import type { BlockdevOptions } from './options.ts';
import type { ReferencePolicy } from './reference-policy.ts';

export interface NodeMessage {
  readonly node: string;
}

export interface NodeAddMessage {
  readonly options: BlockdevOptions;
  readonly policy: ReferencePolicy;
}

/** Which nodes there are in the thread by now. */
export interface NodeNames {
  readonly names: readonly string[];
}

export interface NodeAdded extends NodeNames {
  readonly node: string;
}

export interface NodeResizeMessage extends NodeMessage {
  readonly size: Bytes;
}

export interface NodeThresholdMessage extends NodeMessage {
  /** 0 takes it away. */
  readonly bytes: Bytes;
}

export interface NodeDiskMessage extends NodeMessage {
  /** What the user is called in messages. */
  readonly name: string;
  readonly writable: boolean;
  readonly writethrough: boolean;
  /** It does not go to another thread. Default false. */
  readonly fixed?: boolean;
  /** See BlockBackendOptions. */
  readonly owner?: string;
  readonly allowInactive?: boolean;
}

export interface EdgeInfo {
  /** What the parent calls it. */
  readonly name: string;
  readonly node: string;
  /** Perm bits. */
  readonly perm: number;
  readonly shared: number;
}

/** A user that is no node. */
export interface BackendInfo {
  readonly name: string;
  readonly perm: number;
  readonly shared: number;
}

/** All that is known of a node. */
export interface NodeInfo {
  readonly name: string;
  readonly driver: string;
  /** What decides what it reads as: itself, or the node below it where it is a filter. */
  readonly layer: string;
  /** Of its file, or of what stands for that. */
  readonly filename: string;
  readonly readOnly: boolean;
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  readonly direct: boolean;
  readonly noFlush: boolean;
  readonly active: boolean;
  readonly length: Bytes;
  /** What it takes of its storage, where that is known. */
  readonly allocated: Bytes | undefined;
  /** 0 for none. */
  readonly threshold: Bytes;
  /** Where the write ended that went furthest. */
  readonly highestWrite: Offset;
  readonly discards: DiscardCounts;
  readonly bitmaps: readonly BitmapInfo[];
  readonly snapshots: readonly SnapshotInfo[];
  /** What the driver says of the image, by QAPI's names. */
  readonly image: Readonly<Record<string, unknown>>;
  readonly children: readonly EdgeInfo[];
  readonly backends: readonly BackendInfo[];
  /** It was added by itself, and goes only when it is asked to. */
  readonly owned: boolean;
}

/** A write has gone beyond a threshold. */
export interface ThresholdEvent {
  readonly service: 0;
  readonly node: string;
  readonly threshold: Offset;
  readonly end: Offset;
}

/** The image of a node has been found damaged. */
export interface DamageEvent extends Damage {
  readonly service: 0;
}

export interface NodeActiveMessage {
  /** Default: all. */
  readonly node: string | undefined;
  readonly active: boolean;
}

export interface NodeSnapshotMessage extends NodeMessage {
  /** Id or name. */
  readonly which: string;
}

export interface NodeAmendMessage extends NodeMessage {
  /** By the names of the driver's creation options. */
  readonly changes: Readonly<Record<string, unknown>>;
}

export interface NodeReopenMessage {
  /** Of each its `node-name`, and children by the names of nodes. */
  readonly changes: readonly BlockdevOptions[];
}

export interface NodeMethods {
  /** All of them, or none. */
  'node-reopen'(args: NodeReopenMessage): NodeNames;
  /** Takes an internal snapshot away; answers what it was. */
  'node-snapshot-delete'(args: NodeSnapshotMessage): SnapshotInfo;
  'node-amend'(args: NodeAmendMessage): void;
  'node-set-active'(args: NodeActiveMessage): void;
  'node-add'(args: NodeAddMessage): NodeAdded;
  /** What was added belongs to those who use it: it goes with the last of them, or at once. */
  'node-let-go'(args: NodeMessage): NodeNames;
  'node-names'(): NodeNames;
  'node-del'(args: NodeMessage): NodeNames;
  'node-list'(): NodeInfo[];
  'node-resize'(args: NodeResizeMessage): void;
  'node-threshold'(args: NodeThresholdMessage): void;
  /** A disk on a node that is there. */
  'node-disk'(args: NodeDiskMessage): OpenReply;
}
