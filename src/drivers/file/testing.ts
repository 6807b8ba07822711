import assert from 'node:assert/strict';
import { constants, readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** The open file of that name of a process: whether it is direct, and how it is locked. */
export function openFile(pid: number, path: string): { readonly direct: boolean; readonly locks: readonly string[] } {
  const fds = readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`) === path;
    } catch {
      // Closed by now.
      return false;
    }
  });
  assert.equal(fds.length, 1, `${fds.length} descriptors of '${path}'`);
  const lines = readFileSync(`/proc/${pid}/fdinfo/${fds[0]}`, 'latin1').split('\n');
  const flags = Number.parseInt(lines.find((line) => line.startsWith('flags:'))!.slice(6), 8);
  const locks = lines.filter((line) => line.startsWith('lock:')).map((line) => line.replace(/^lock:\s*\d+: /, ''));
  return { direct: (flags & constants.O_DIRECT) !== 0, locks: locks.sort() };
}
