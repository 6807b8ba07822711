/** Snapshots as they are shown. */
import type { SnapshotInfo } from '../lib/image-options.ts';
import { sizeText } from './report.ts';

/** By the names of `qemu-img info --output=json`. */
export function snapshotJson(snapshot: SnapshotInfo): Record<string, unknown> {
  return {
    id: snapshot.id,
    name: snapshot.name,
    'vm-state-size': snapshot.vmStateSize,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.vmClockSeconds,
    'vm-clock-nsec': snapshot.vmClockNanoseconds,
    ...(snapshot.icount === undefined ? {} : { icount: snapshot.icount }),
  };
}

const HEAD = ['ID', 'TAG', 'VM SIZE', 'DISK SIZE', 'DATE', 'VM CLOCK'];

/** One line each, in columns. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string {
  const rows = [HEAD, ...snapshots.map(row)];
  const widths = HEAD.map((_, column) => Math.max(...rows.map((cells) => cells[column]!.length)));
  const lines = rows.map((cells) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}

function row(snapshot: SnapshotInfo): string[] {
  const date = new Date(snapshot.dateSeconds * 1000);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-');
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':');
  const { vmClockSeconds: clock } = snapshot;
  const milliseconds = String(Math.floor(snapshot.vmClockNanoseconds / 1e6)).padStart(3, '0');
  const ran = [Math.floor(clock / 3600), Math.floor(clock / 60) % 60, clock % 60].map(two).join(':');
  return [
    ...[snapshot.id, snapshot.name].map((name) => name.replace(/\p{C}/gu, '?')),
    ...[sizeText(snapshot.vmStateSize), sizeText(snapshot.diskSize)],
    ...[`${day} ${time}`, `${ran}.${milliseconds}`],
  ];
}
