/** `--daemonize`: another process goes on in the background, and this one ends once it is ready. */
import { spawn } from 'node:child_process';
import { fstatSync, realpathSync } from 'node:fs';
import { Gate } from '../../aio/op.ts';

/** Says to the new process what it is. */
const VARIABLE = 'BLOCKPLANE_DAEMONIZED';
/** Descriptors that may have been handed to us: standard streams are not among them. */
const FD_FIRST = 3;
const FD_LAST = 31;

export function startedBy(environment: NodeJS.ProcessEnv): boolean {
  return environment[VARIABLE] === '1';
}

/** In the background nobody else is to read what it makes, and nobody may be there who reads its messages. */
export function becomeBackground(): void {
  process.umask(0o027);
  process.stderr.on('error', () => undefined);
}

/** Answers the exit code of this process. */
export async function daemonize(argv: readonly string[]): Promise<number> {
  // Not under the name it was called, which may be a link and a program's.
  const main = realpathSync(process.argv[1]!);
  const passed = Array.from({ length: FD_LAST - FD_FIRST + 1 }, (_, i) =>
    isOpen(argv, FD_FIRST + i) ? FD_FIRST + i : 'ignore',
  );
  const child = spawn(process.execPath, [...process.execArgv, main, 'qemu-storage-daemon', ...argv], {
    detached: true,
    // Not our own: whoever reads that waits for the last who has it.
    stdio: ['ignore', 'ignore', 'pipe', ...(passed as ('ignore' | number)[]), 'ipc'],
    env: { ...process.env, [VARIABLE]: '1' },
  });
  child.stderr!.pipe(process.stderr);
  const outcome = new Gate<number>();
  child.once('message', () => outcome.open(0));
  child.once('close', (status) => outcome.open(status ?? 1));
  child.once('error', () => outcome.open(1));
  const code = await outcome.promise;
  child.stderr!.destroy();
  if (child.connected) child.disconnect();
  child.unref();
  return code;
}

/** An option names the descriptor, and it is there. */
function isOpen(argv: readonly string[], fd: number): boolean {
  if (!argv.some((word) => new RegExp(`(fd|str|fdset)=${fd}\\b|"str" *: *"${fd}"`).test(word))) return false;
  try {
    fstatSync(fd);
    return true;
  } catch {
    return false;
  }
}
