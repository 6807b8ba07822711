/** The daemon as a program: its command line, its pid file, readiness, and its end. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { QmpClient } from '../../src/daemon/index.ts';
import { MAIN, needs, run, scratch, underSystemd } from '../harness.ts';
import { Peer } from './conversation.ts';

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];

/** Wrong from the first word on, so that neither begins to serve. */
const WRONG: readonly (readonly string[])[] = [
  ['--blockdev', 'null-co,size=x,node-name=a'],
  ['--blockdev', 'null-co,read-zeroes=x,node-name=a'],
  ['--blockdev', 'null-co,latency-ns=x,node-name=a'],
  ['--blockdev', 'foo,node-name=a'],
  ['--blockdev', 'null-co,foo=1,node-name=a'],
  ['--blockdev', 'null-co,=a'],
  ['--blockdev', 'null-co,cache=5'],
  ['--blockdev', 'null-co,cache.x=5'],
  ['--blockdev', 'null-co,cache..x=5'],
  ['--blockdev', ''],
  ['--blockdev', '{'],
  ['--blockdev', '{}'],
  ['--blockdev', '{"driver":"null-co","size":"1M"}'],
  ['--blockdev', 'raw,file=zz,node-name=x'],
  ['--blockdev', 'raw,node-name=x'],
  ['--blockdev', 'null-co,discard=zz,node-name=x'],
  ['--blockdev', 'null-co'],
  ['--blockdev', 'help'],
  ['--blockdev', 'null-co,help'],
  ['--blockdev', 'null-co,node-name=a', '--blockdev', 'null-co,node-name=a'],
  ['--chardev', 'foo,id=x'],
  ['--chardev', 'stdio'],
  ['--monitor', 'chardev=zz'],
  ['--monitor', 'zz,foo=1'],
  ['--monitor', 'zz,mode=xx'],
  ['--monitor', 'help'],
  ['--chardev', 'null,id=c', '--monitor', 'c,mode=readline'],
  ['--daemonize', '--chardev', 'stdio,id=c'],
  ['--chardev', 'null,id=1c'],
  ['--chardev', 'null,id=c,foo=1'],
  ['--chardev', 'null,id=c,mux=x'],
  ['--chardev', 'vc,id=c'],
  ['--chardev', 'file,id=c'],
  ['--chardev', 'pipe,id=c'],
  ['--chardev', 'serial,id=c'],
  ['--chardev', 'udp,id=c,host=127.0.0.1'],
  ['--chardev', 'mux,id=c,chardev=x'],
  ['--chardev', 'ringbuf,id=c,size=5'],
  ['--chardev', 'socket,id=c,host=127.0.0.1'],
  ['--chardev', 'socket,id=c,path=/nowhere/x'],
  ['--chardev', 'socket,id=c,path=/nowhere/x,wait=on'],
  ['--chardev', 'socket,id=c,path=/nowhere/x,server=on,wait=off'],
  ['--chardev', 'socket,id=c,port=0,host=::1,ipv4=on,server=on,wait=off'],
  ['--chardev', 'socket,id=c,fd=77,server=on,wait=off'],
  ['--nbd-server', 'addr.type=inet,addr.host=127.0.0.1,addr.port=0,addr.ipv6=on'],
  ['--export', 'nbd'],
  ['--export', 'help'],
  ['--export', 'nbd,id=e,node-name=x'],
  ['--nbd-server', 'addr.type=unix'],
  ['--nbd-server', 'help'],
  ['--foo'],
  ['foo'],
  ['--blockdev'],
  ['--pidfile', '/nowhere/x', '--blockdev', 'null-co,node-name=a'],
  ['--blockdev=null-co,size=x,node-name=a'],
  ['--nbd-server', 'addr.type=unix,addr.path=x,addr.tight=x'],
  ['-T', 'nosuch', '--foo'],
  ...['nosuch', 'enable=nosuch', '-nosuch', 'no*', '', 'foo=1', 'file=/nowhere/x'].flatMap((value) => [
    ['-T', value, '--blockdev', 'x'],
    [`--trace=${value}`, '--blockdev', 'x'],
  ]),
  ['--blockdev', 'x', '-T', 'help'],
  ['-Tnosuch', '-T', 'other', '--blockdev', 'x'],
  ['-T'],
];

for (const args of WRONG) {
  test(`refused in the words of qemu-storage-daemon: ${args.join(' ')}`, needs('qemu-storage-daemon'), async () => {
    const [theirs, ours] = await Promise.all([
      run('qemu-storage-daemon', args),
      run(OURS[0]!, [...OURS.slice(1), ...args]),
    ]);
    const told = { ...theirs, stderr: theirs.stderr.replace('/usr/bin/', '') };
    assert.deepEqual(ours, told);
  });
}

test('everything is there by the time the process that was told to daemonize ends', { timeout: 30_000 }, async (t) => {
  const directory = scratch(t);
  const pidfile = join(directory, 'pid');
  const args = [
    ...['--blockdev', 'null-co,node-name=n,size=1M', '--nbd-server', `addr.type=unix,addr.path=${directory}/nbd`],
    ...['--export', 'nbd,id=e,node-name=n', '--pidfile', pidfile, '--daemonize'],
  ];
  const { code, stderr } = await run(OURS[0]!, [...OURS.slice(1), ...args]);
  assert.deepEqual([code, stderr], [0, '']);
  const pid = Number(readFileSync(pidfile, 'utf8'));
  // What it makes is not for everybody, as in qemu-storage-daemon.
  assert.equal(statSync(join(directory, 'nbd')).mode & 0o777, 0o750);
  assert.equal(statSync(pidfile).mode & 0o777, 0o600);
  process.kill(pid, 'SIGTERM');
  while (existsSync(pidfile)) await new Promise((resolve) => setTimeout(resolve, 20));
});

test('a second daemon does not take the pid file of the first', { timeout: 30_000 }, async (t) => {
  const directory = scratch(t);
  const pidfile = join(directory, 'pid');
  await Peer.start(t, directory, OURS, ['--pidfile', pidfile]);
  const { code, stderr } = await run(OURS[0]!, [...OURS.slice(1), '--pidfile', pidfile]);
  assert.equal(code, 1);
  assert.match(stderr, /cannot create PID file: Cannot lock '.*': Resource temporarily unavailable/);
});

test('SIGTERM ends it in good order', { timeout: 30_000 }, async (t) => {
  const directory = scratch(t);
  const args = ['--chardev', `socket,id=c,path=${directory}/q,server=on,wait=off`, '--monitor', 'c'];
  const child = spawn(OURS[0]!, [...OURS.slice(1), ...args, '--pidfile', join(directory, 'pid')], { stdio: 'pipe' });
  t.after(() => child.kill('SIGKILL'));
  while (!existsSync(join(directory, 'pid')) || readFileSync(join(directory, 'pid'), 'utf8') === '') {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  child.kill('SIGTERM');
  const [code] = (await once(child, 'exit')) as [number | null];
  assert.equal(code, 0);
  assert.ok(!existsSync(join(directory, 'q')) && !existsSync(join(directory, 'pid')));
});

test('who comes while it starts is answered once all is there', needs('python3'), async (t) => {
  const path = join(scratch(t), 'q');
  const nodes = ['a', 'b', 'c'].flatMap((name) => ['--blockdev', `null-co,node-name=${name}`]);
  const monitor = ['--chardev', 'socket,id=c,fd=3,server=on,wait=off', '--monitor', 'c'];
  const [program, ...args] = underSystemd([path], [...OURS, ...monitor, ...nodes]);
  const child = spawn(program!, args, { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  const connect = async (): Promise<QmpClient> => {
    for (;;) {
      // Nobody listens yet.
      const client = await QmpClient.connect({ path }).catch(() => undefined);
      if (client) return client;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await using qmp = await connect();
  assert.equal((await qmp.execute('query-named-block-nodes', { flat: true })).length, 3);
});
