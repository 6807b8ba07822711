import assert from 'node:assert/strict';
import { constants, readdirSync, readFileSync, readlinkSync } from 'node:fs';

export interface OpenFile {
  readonly direct: boolean;
  readonly locks: readonly string[];
}

/** The open file of that name of a process, by each of its descriptors. */
export function openFiles(pid: number, path: string): OpenFile[] {
  const fds = readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`) === path;
    } catch {
      // Closed by now.
      return false;
    }
  });
  return fds.map((fd) => {
    const lines = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1').split('\n');
    const flags = Number.parseInt(lines.find((line) => line.startsWith('flags:'))!.slice(6), 8);
    const locks = lines.filter((line) => line.startsWith('lock:')).map((line) => line.replace(/^lock:\s*\d+: /, ''));
    return { direct: (flags & constants.O_DIRECT) !== 0, locks: locks.sort() };
  });
}

/** The same, where there is to be one descriptor. */
export function openFile(pid: number, path: string): OpenFile {
  const files = openFiles(pid, path);
  assert.equal(files.length, 1, `${files.length} descriptors of '${path}'`);
  return files[0]!;
}
