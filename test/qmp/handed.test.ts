/** What a service manager hands to the daemon, and what it is told. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { QmpClient } from '../../src/daemon/index.ts';
import { MAIN, needs, peer, scratch } from '../harness.ts';

/** Has the words after it run with listening sockets of these names as descriptors 3, 4, ..., and prints what the
 *  process tells its service manager. */
const MANAGER = `
import os, socket, sys
directory, names, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(directory + "/notify")
child = os.fork()
if child == 0:
    sockets = [socket.socket(socket.AF_UNIX) for name in names]
    for i, (s, name) in enumerate(zip(sockets, names)):
        s.bind(directory + "/" + name)
        s.listen()
        os.dup2(s.fileno(), 50 + i)
    for i in range(len(names)):
        os.dup2(50 + i, 3 + i)
    os.environ.update(NOTIFY_SOCKET=directory + "/notify")
    os.execv(command[0], command)
for _ in range(2):
    print(notify.recv(4096).decode(), flush=True)
print("exit", os.waitpid(child, 0)[1], flush=True)
`;

test(
  'sockets that are handed over are served, and the service manager is told',
  needs('python3', 'nbdinfo'),
  async (t) => {
    const directory = scratch(t);
    const daemon = [
      ...[process.execPath, MAIN, 'qemu-storage-daemon'],
      ...['--chardev', 'socket,id=mon,fd=3,server=on,wait=off', '--monitor', 'chardev=mon'],
      ...['--nbd-server', 'addr.type=fd,addr.str=4'],
      ...['--blockdev', 'null-co,node-name=n,size=1M', '--export', 'nbd,id=e,node-name=n,name=n'],
    ];
    const child = spawn('/usr/bin/python3', ['-c', MANAGER, directory, 'qmp,nbd', ...daemon], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    const exited = once(child, 'exit');
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    assert.equal((await lines.next()).value, 'READY=1');
    assert.equal((await peer('nbdinfo', '--size', `nbd+unix:///n?socket=${join(directory, 'nbd')}`)).trim(), '1048576');
    await using qmp = await QmpClient.connect({ path: join(directory, 'qmp') });
    const [entry] = await qmp.execute('query-block-exports', {});
    assert.deepEqual({ ...entry }, { id: 'e', type: 'nbd', 'node-name': 'n', 'shutting-down': false });
    await qmp.execute('quit', {});
    assert.equal((await lines.next()).value, 'STOPPING=1');
    assert.equal((await lines.next()).value, 'exit 0');
    await exited;
  },
);

const RING = process.env.BLOCKPLANE_AIO === 'pool' ? { skip: 'it needs io_uring' } : needs('python3');

test('a listening socket that is handed over becomes a vhost-user device', RING, async (t) => {
  const directory = scratch(t);
  const daemon = [
    ...[process.execPath, MAIN, 'qemu-storage-daemon'],
    ...['--chardev', 'socket,id=mon,fd=3,server=on,wait=off', '--monitor', 'chardev=mon'],
    ...['--blockdev', 'null-co,node-name=n,size=1M,read-zeroes=on'],
    ...['--export', 'vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.str=4'],
  ];
  const child = spawn('/usr/bin/python3', ['-c', MANAGER, directory, 'qmp,vhost', ...daemon], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  assert.equal((await lines.next()).value, 'READY=1');
  const { open } = await import('../../src/index.ts');
  const path = join(directory, 'vhost');
  const disk = await open({ driver: 'virtio-blk-vhost-user', path, 'read-only': true });
  assert.equal((await disk.stat()).size, 1048576);
  await disk.close();
  await using qmp = await QmpClient.connect({ path: join(directory, 'qmp') });
  await qmp.execute('quit', {});
  assert.equal((await lines.next()).value, 'STOPPING=1');
});
