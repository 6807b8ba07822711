/** What is known of nodes, as QMP shows it. */
import { dirname, isAbsolute, join } from 'node:path';
import { Perm } from '../../block/driver.ts';
import type { BitmapInfo } from '../../lib/bitmap-messages.ts';
import type { NodeInfo } from '../../lib/node-messages.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import type { Daemon } from '../daemon.ts';
import type { Handlers } from './table.ts';

type Graph = ReadonlyMap<string, NodeInfo>;

export function queryCommands({ nodes }: Daemon): Handlers {
  return {
    // Nodes only: there are no devices of guests.
    'query-block': () => [],
    'query-blockstats': async ({ 'query-nodes': all = false }) => {
      const graph: Graph = all ? graphOf(await nodes.list()) : new Map();
      return [...graph.values()].map((node) => nodeStats(node, graph));
    },
    'query-named-block-nodes': async ({ flat = false }) => {
      const graph = graphOf(await nodes.list());
      return [...graph.values()].map((node) => deviceInfo(node, graph, flat));
    },
    'x-debug-query-block-graph': async () => blockGraph(graphOf(await nodes.list())),
  };
}

function graphOf(list: readonly NodeInfo[]): Graph {
  return new Map(list.map((node) => [node.name, node]));
}

/** What is below a node that it falls back on, or that it shows. */
function backingOf(node: NodeInfo, graph: Graph): NodeInfo | undefined {
  const place = isFilter(node) ? ['backing', 'file', 'image'] : ['backing'];
  const edge = node.children.find(({ name }) => place.includes(name));
  return edge && graph.get(edge.node);
}

/** For clients `raw` is a format. */
function isFilter({ name, layer, driver }: NodeInfo): boolean {
  return layer !== name && driver !== 'raw';
}

function deviceInfo(node: NodeInfo, graph: Graph, flat: boolean): Qapi<'BlockDeviceInfo'> {
  const backing = backingOf(node, graph);
  return {
    'node-name': node.name,
    file: node.filename,
    ro: node.readOnly,
    drv: node.driver,
    ...(backing && !isFilter(node) ? { backing_file: backing.filename } : {}),
    backing_file_depth: flat ? 0 : depthOf(node, graph),
    encrypted: node.image.encrypted === true,
    detect_zeroes: node.detectZeroes,
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: imageInfo(node, graph, flat),
    cache: { writeback: true, direct: node.direct, 'no-flush': node.noFlush },
    write_threshold: node.threshold,
    active: node.active,
    ...(node.bitmaps.length === 0 ? {} : { 'dirty-bitmaps': node.bitmaps.map(bitmapInfo) }),
  };
}

function depthOf(node: NodeInfo, graph: Graph): number {
  const backing = backingOf(node, graph);
  return backing ? 1 + depthOf(backing, graph) : 0;
}

function imageInfo(node: NodeInfo, graph: Graph, flat: boolean): Qapi<'ImageInfo'> {
  const backing = flat ? undefined : backingOf(node, graph);
  const name = node.image['backing-filename'];
  return {
    filename: node.filename,
    format: node.driver,
    'virtual-size': node.length,
    ...(node.allocated === undefined ? {} : { 'actual-size': node.allocated }),
    ...(FILES.has(node.driver) ? { 'dirty-flag': false } : {}),
    ...ofShown(node, graph),
    ...node.image,
    ...(typeof name === 'string' ? { 'full-backing-filename': fullName(node.filename, name) } : {}),
    ...(node.snapshots.length === 0 ? {} : { snapshots: node.snapshots.map(snapshotInfo) }),
    ...(backing ? { 'backing-image': imageInfo(backing, graph, flat) } : {}),
  };
}

/** What a filter says of the image that it shows. */
function ofShown(node: NodeInfo, graph: Graph): Pick<Qapi<'ImageInfo'>, 'cluster-size'> {
  const { image } = (isFilter(node) ? graph.get(node.layer) : undefined) ?? { image: {} };
  const told = ['cluster-size', 'dirty-flag'].filter((one) => Object.hasOwn(image, one));
  return Object.fromEntries(told.map((one) => [one, (image as Readonly<Record<string, unknown>>)[one]]));
}

/** Drivers of files. */
const FILES = new Set(['file', 'host_device']);

function fullName(image: string, name: string): string {
  return isAbsolute(name) || /^[^/]*:/.test(name) ? name : join(dirname(image), name);
}

export function snapshotInfo(snapshot: NodeInfo['snapshots'][number]): Qapi<'SnapshotInfo'> {
  const { id, name, vmStateSize, dateSeconds, dateNanoseconds, vmClockSeconds, vmClockNanoseconds, icount } = snapshot;
  return {
    id,
    name,
    'vm-state-size': vmStateSize,
    'date-sec': dateSeconds,
    'date-nsec': dateNanoseconds,
    'vm-clock-sec': vmClockSeconds,
    'vm-clock-nsec': vmClockNanoseconds,
    ...(icount === undefined ? {} : { icount }),
  };
}

function bitmapInfo({ name, granularity, enabled, persistent, inconsistent, busy, dirty }: BitmapInfo) {
  return {
    name,
    count: dirty,
    granularity,
    recording: enabled && !inconsistent,
    busy,
    persistent,
    ...(inconsistent ? { inconsistent } : {}),
  };
}

/** What requests are counted of are devices of guests, there as here; a node knows how far it was written. */
function nodeStats(node: NodeInfo, graph: Graph): Qapi<'BlockStats'> {
  const file = node.children.find(({ name }) => name === 'file');
  const below = file && graph.get(file.node);
  return {
    'node-name': node.name,
    stats: { ...NO_STATS, wr_highest_offset: node.highestWrite },
    ...(FILES.has(node.driver) ? { 'driver-specific': fileStats(node) } : {}),
    ...(below ? { parent: nodeStats(below, graph) } : {}),
  };
}

function fileStats({ driver, discards }: NodeInfo) {
  const { done, failed, bytes } = discards;
  return { driver, 'discard-nb-ok': done, 'discard-nb-failed': failed, 'discard-bytes-ok': bytes };
}

const NO_STATS: Qapi<'BlockDeviceStats'> = {
  rd_bytes: 0,
  wr_bytes: 0,
  unmap_bytes: 0,
  rd_operations: 0,
  wr_operations: 0,
  flush_operations: 0,
  unmap_operations: 0,
  rd_total_time_ns: 0,
  wr_total_time_ns: 0,
  flush_total_time_ns: 0,
  unmap_total_time_ns: 0,
  wr_highest_offset: 0,
  rd_merged: 0,
  wr_merged: 0,
  unmap_merged: 0,
  failed_rd_operations: 0,
  failed_wr_operations: 0,
  failed_flush_operations: 0,
  failed_unmap_operations: 0,
  invalid_rd_operations: 0,
  invalid_wr_operations: 0,
  invalid_flush_operations: 0,
  invalid_unmap_operations: 0,
  account_invalid: false,
  account_failed: false,
  timed_stats: [],
};

function blockGraph(graph: Graph): Qapi<'XDbgBlockGraph'> {
  const ids = new Map([...graph.keys()].map((name, i) => [name, i + 1]));
  const nodes: Qapi<'XDbgBlockGraphNode'>[] = [...ids].map(([name, id]) => ({ id, type: 'block-driver', name }));
  const edges: Qapi<'XDbgBlockGraphEdge'>[] = [];
  for (const node of graph.values()) {
    const child = ids.get(node.name)!;
    for (const { name, node: below, perm, shared } of node.children) {
      edges.push({ parent: child, child: ids.get(below)!, name, perm: names(perm), 'shared-perm': names(shared) });
    }
    for (const { perm, shared } of node.backends) {
      const parent = ids.size + nodes.length;
      nodes.push({ id: parent, type: 'block-backend', name: '' });
      edges.push({ parent, child, name: 'root', perm: names(perm), 'shared-perm': names(shared) });
    }
  }
  return { nodes, edges };
}

function names(perm: number): Qapi<'BlockPermission'>[] {
  const all: [number, Qapi<'BlockPermission'>][] = [
    [Perm.CONSISTENT_READ, 'consistent-read'],
    [Perm.WRITE, 'write'],
    [Perm.WRITE_UNCHANGED, 'write-unchanged'],
    [Perm.RESIZE, 'resize'],
  ];
  return all.filter(([bit]) => (perm & bit) !== 0).map(([, name]) => name);
}
