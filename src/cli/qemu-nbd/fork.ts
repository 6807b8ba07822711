/** `--fork`: another process serves in the background, and this one returns once clients can connect. */
import { spawn } from 'node:child_process';
import { Gate } from '../../aio/op.ts';

/** Tells the process in the background what it is: how many listening sockets it has, from descriptor 3 on. */
const VARIABLE = 'BLOCKPLANE_QEMU_NBD_FORKED';
const FIRST_FD = 3;

/** In the process in the background: the sockets that it was given. Undefined in any other. */
export function forkedFds(environment: NodeJS.ProcessEnv): number[] | undefined {
  const count = environment[VARIABLE];
  delete environment[VARIABLE];
  return count === undefined ? undefined : Array.from({ length: Number(count) }, (_, i) => FIRST_FD + i);
}

/** Runs this command line in the background, with `fds` as its listening sockets; answers the exit code. */
export async function fork(fds: readonly number[]): Promise<number> {
  const [script, ...words] = process.argv.slice(1);
  const child = spawn(process.execPath, [...process.execArgv, script!, ...words], {
    // A session of its own, without a terminal; what it has to say until it serves is said here.
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe', ...fds, 'ipc'],
    env: { ...process.env, [VARIABLE]: String(fds.length) },
  });
  const outcome = new Gate<number>();
  child.stderr!.pipe(process.stderr, { end: false });
  child.once('message', () => outcome.open(0));
  // Its last words are through when its streams have ended, too.
  child.once('close', (code) => outcome.open(code ?? 1));
  child.once('error', (error) => {
    process.stderr.write(`qemu-nbd: Failed to fork: ${error.message}\n`);
    outcome.open(1);
  });
  const code = await outcome.promise;
  child.stderr!.destroy();
  if (child.connected) child.disconnect();
  child.unref();
  return code;
}

/** In the process in the background: the other one may return. */
export function forkDone(): void {
  process.send?.('serving', () => process.disconnect?.());
  // What is served has been found by now, and no directory is to be kept busy.
  process.chdir('/');
}
