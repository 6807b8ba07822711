/** systemd's socket activation: listening sockets are handed over as descriptors from 3 on. */

const FIRST_FD = 3;

/** The descriptors meant for this process; takes the variables away so that no child believes them to be its own. */
export function activatedFds(environment: NodeJS.ProcessEnv, pid: number): number[] {
  const count = Number(environment.LISTEN_FDS ?? '0');
  const mine = Number(environment.LISTEN_PID ?? '-1') === pid;
  delete environment.LISTEN_FDS;
  delete environment.LISTEN_PID;
  delete environment.LISTEN_FDNAMES;
  if (!mine || !Number.isInteger(count) || count < 1) return [];
  return Array.from({ length: count }, (_, i) => FIRST_FD + i);
}
