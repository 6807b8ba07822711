/** Snapshots as qemu-img lists them. */
import type { SnapshotInfo } from '../../lib/image-options.ts';
import { shortSize } from './sizes.ts';

/** A head and a line for each, without a line end behind the last. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string {
  const head = row(['ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT']);
  return [head, ...snapshots.map((one) => row(cells(one)))].join('\n');
}

/** Columns that begin at the left keep a blank behind them, whatever is in them. */
function row([id, tag, ...others]: readonly string[]): string {
  const right = others.map((cell, i) => cell.padStart(RIGHT[i]!)).join('');
  return `${id!.padEnd(9)} ${tag!.padEnd(16)} ${right}`;
}

const RIGHT = [8, 20, 13, 11];

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
