/** For tests: a daemon in a process of its own, and a client of its monitor. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { QmpClient } from '../src/daemon/index.ts';
import { MAIN } from './harness.ts';

const CONNECT_TRIES = 1000;

/** Runs `body` with a daemon whose monitor is in `directory`; afterwards it is killed, and gone. */
export async function withDaemon<T>(
  directory: string,
  args: readonly string[],
  body: (client: QmpClient, child: ChildProcess) => Promise<T>,
): Promise<T> {
  const path = join(directory, 'qmp');
  const monitor = ['--chardev', `socket,id=c,path=${path},server=on,wait=off`, '--monitor', 'c'];
  const child = spawn(process.execPath, [MAIN, 'daemon', ...args, ...monitor], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const ended = once(child, 'close');
  try {
    const client = await connected(path);
    try {
      return await body(client, child);
    } finally {
      await client[Symbol.asyncDispose]().catch(() => undefined);
    }
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}

/** A client of the monitor at `path`. The socket is there before anybody listens. */
export async function connected(path: string): Promise<QmpClient> {
  for (let tries = 1; ; tries++) {
    try {
      return await QmpClient.connect({ path });
    } catch (error) {
      if (tries === CONNECT_TRIES) throw error;
      await delay(10);
    }
  }
}
