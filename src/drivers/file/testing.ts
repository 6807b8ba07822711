import assert from 'node:assert/strict';
import { closeSync, constants, openSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';

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

/** False where the directory's file system has no direct I/O, as tmpfs had none before Linux 6.6. */
export function canBeDirect(directory: string): boolean {
  const path = join(directory, 'direct');
  closeSync(openSync(path, 'w'));
  try {
    closeSync(openSync(path, constants.O_RDONLY | constants.O_DIRECT));
    return true;
  } catch {
    return false;
  } finally {
    rmSync(path);
  }
}
