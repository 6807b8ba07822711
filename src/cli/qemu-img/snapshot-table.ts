/** Snapshots as qemu-img lists them. */
import type { SnapshotInfo } from '../../lib/image-options.ts';
import { shortSize } from './sizes.ts';

/** A head and a line for each, without a line end behind the last. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string {
  const head = row(['ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT']);
  return [head, ...snapshots.map((one) => row(cells(one)))].join('\n');
}

/** The first columns begin at the left, the others end at the right. */
const WIDTHS = [10, 17, 8, 20, 13, 11];
const LEFT = 2;

function row(cells: readonly string[]): string {
  return cells.map((cell, i) => (i < LEFT ? cell.padEnd(WIDTHS[i]!) : cell.padStart(WIDTHS[i]!))).join('');
}

function cells(snapshot: SnapshotInfo): readonly string[] {
  const { vmClockSeconds: clock } = snapshot;
  const milliseconds = String(Math.floor(snapshot.vmClockNanoseconds / 1e6)).padStart(3, '0');
  const ran = [Math.floor(clock / 3600), Math.floor(clock / 60) % 60, clock % 60].map(two).join(':');
  return [
    snapshot.id,
    snapshot.name,
    shortSize(snapshot.vmStateSize),
    localTime(snapshot.dateSeconds),
    `${ran}.${milliseconds}`,
    snapshot.icount === undefined ? '' : String(snapshot.icount),
  ];
}

function two(value: number): string {
  return String(value).padStart(2, '0');
}

/** 2026-11-26 12:14:06 */
function localTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':')}`;
}
