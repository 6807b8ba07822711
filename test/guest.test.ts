/**
 * A real Linux guest under QEMU on our vhost-user-blk devices. What boots it is a program beside the project
 * (`guest.sh`, or what BLOCKPLANE_GUEST names); without it, or without QEMU, these tests are skipped.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { create, IOThread, open, serveVhostUser } from '../src/index.ts';
import { guest, whyNoGuest } from './guest.ts';
import { MAIN, needs, peer, scratch, sparse } from './harness.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const MIB = 2 ** 20;
/** How often a guest's daemon is killed and started again, while the guest writes and verifies its disk. */
const RESTARTS = LONG ? 100 : 4;
/** And how often its disk moves. */
const MOVES = LONG ? 100 : 6;

const missing = needs('qemu-system-x86_64', 'qemu-img', 'fio').skip;
const absent = whyNoGuest ?? missing;
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : absent;

/** Answers `hostcall WORDS` of guests. */
async function hookFor(t: TestContext, folder: string, answer: (words: readonly string[]) => Promise<void>) {
  const path = join(folder, 'hook.sock');
  const server = createServer((socket) => {
    socket.once('data', async (data) => {
      const why = await answer(data.toString().trim().split(' ')).then(
        () => '',
        (error: Error) => error.message,
      );
      socket.end(why === '' ? 'done' : why);
    });
  });
  server.listen(path);
  await once(server, 'listening');
  t.after(() => server.close());
  const hook = join(folder, 'hook');
  const words = "process.argv.slice(1).join(' ')";
  const call = `require('net').connect('${path}').on('data', (text) => {
    if (text != 'done') console.error(String(text));
    process.exit(text == 'done' ? 0 : 1);
  }).write(${words})`;
  writeFileSync(hook, `#!/bin/sh\nexec ${process.execPath} -e "${call.replaceAll('\n', ' ')}" -- "$@"\n`);
  chmodSync(hook, 0o755);
  return hook;
}

const BASICS = `#!/bin/sh
set -ex
[ "$(cat /sys/block/vda/size)" = 131072 ]
[ "$(cat /sys/block/vda/serial)" = raw-disk ]
[ "$(ls /sys/block/vda/mq | wc -l)" = 2 ]
[ "$(cat /sys/block/vda/cache_type)" = "write back" ]
[ "$(cat /sys/block/vdc/ro)" = 1 ]
mkfs.ext4 -q -F /dev/vda
mount -o discard /dev/vda /mnt
head -c 3000000 /dev/urandom >/mnt/f
sha256sum /mnt/f >/mnt/sum
cp /mnt/f /mnt/g; sync; rm /mnt/f; fstrim /mnt
umount /mnt; mount -o ro /dev/vda /mnt
sed -i s/x/x/ /dev/null; [ "$(sha256sum </mnt/g | cut -c1-64)" = "$(cut -c1-64 /mnt/sum)" ]
umount /mnt
e2fsck -fn /dev/vda
cmp -s -n 1048576 /dev/vdb /dev/zero && exit 1
fio --name=v --filename=/dev/vdb --direct=1 --ioengine=libaio --iodepth=16 --bsrange=4k-64k --offset=8m --size=16m \\
  --rw=randwrite --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >/tmp/out || { cat /tmp/out; exit 1; }
dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct && exit 1
[ "$(cat /sys/block/vdb/size)" = 131072 ]
# A call, or its answer, may be lost on its way.
timeout 20 hostcall grow || timeout 20 hostcall grow || timeout 20 hostcall grow
i=0; while [ "$(cat /sys/block/vdb/size)" != 196608 ]; do i=$((i + 1)); [ $i -lt 50 ]; sleep 0.1; done
blkdiscard /dev/vdb
dd if=/dev/vdb bs=1M count=1 iflag=direct | cmp -s -n 1048576 - /dev/zero
echo ALL WELL
`;

test('a guest boots, sees its disks as they are, and has its data right', { skip, timeout: 600_000 }, async (t) => {
  const folder = scratch(t);
  const raw = sparse(join(folder, 'a.img'), 64 * MIB);
  const base = sparse(join(folder, 'base.img'), 64 * MIB);
  const overlay = join(folder, 'overlay.qcow2');
  writeFileSync(base, new Uint8Array(64 * MIB).fill(0x5a));
  await create(overlay, { backingFile: 'base.img', backingFormat: 'raw' });
  const disks = await Promise.all([open(raw), open(overlay), open(base, { readOnly: true, forceShare: true })]);
  const serials = ['raw-disk', 'overlay', 'base'];
  const services = await Promise.all(disks.map((disk, i) => serveVhostUser(disk, { serial: serials[i] })));
  const hook = await hookFor(t, folder, async () => {
    await disks[1]!.truncate(96 * MIB);
  });
  const devices = services.flatMap(({ socket }) => ['--vhost-user-blk', socket]);
  const text = await guest(folder, [...devices, '--queues', '2', '--with', 'fio', '--hook', hook], BASICS);
  assert.match(text, /ALL WELL/);
  for (const disk of disks) await disk.close();
  await peer('qemu-img', 'check', overlay);
});

/** $1 times has the host do $2, while fio writes and verifies; in as many jobs as there are queues. */
const MEANWHILE = `#!/bin/sh
(while [ ! -e /tmp/enough ]; do
  fio --name=v --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --bs=4k --size=16m --rw=randwrite \\
    --offset_increment=16m --numjobs=2 --group_reporting --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal \\
    >/tmp/out 2>&1 || { echo failed >/tmp/rc; exit; }
done; echo 0 >/tmp/rc) &
i=0
while [ $i -lt $1 ] && [ ! -e /tmp/rc ]; do
  # A call, or its answer, may be lost on its way.
  timeout 20 hostcall $2; rc=$?
  case $rc in 124 | 143) continue ;; 0) ;; *) echo "$2 failed"; exit 1 ;; esac
  dd if=/dev/vda of=/dev/null bs=4k count=1 skip=1000 iflag=direct 2>/dev/null || { echo "read failed"; exit 1; }
  sleep 0.$((i % 7)); i=$((i + 1))
done
touch /tmp/enough
while [ ! -e /tmp/rc ]; do sleep 0.1; done
[ "$(cat /tmp/rc)" = 0 ] || { echo "fio failed"; cat /tmp/out; exit 1; }
echo "DONE $i"
`;

for (const [layout, devopts] of [
  ['split', []],
  ['packed', ['--devopt', 'packed=on']],
] as const) {
  if (layout === 'packed' && !LONG) continue;
  test(`a guest goes on when its daemon is killed and started again: ${layout} rings`, {
    skip,
    timeout: 2_400_000,
  }, async (t) => {
    const folder = scratch(t);
    const image = sparse(join(folder, 'a.img'), 32 * MIB);
    const socket = join(folder, 'a.sock');
    let daemon: ChildProcess | undefined;
    const restart = async (): Promise<void> => {
      if (daemon) {
        daemon.kill('SIGKILL');
        await once(daemon, 'exit');
      }
      const args = [MAIN, 'serve', '--format', 'raw', '--vhost-user', socket, image];
      daemon = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
      const words = daemon.stderr!.setEncoding('utf8').toArray();
      const ended = once(daemon, 'exit').then(async () => {
        throw new Error(`the daemon has ended: ${(await words).join('')}`);
      });
      ended.catch(() => undefined);
      await Promise.race([once(daemon.stdout!, 'data'), ended]);
    };
    t.after(() => daemon?.kill());
    await restart();
    const hook = await hookFor(t, folder, restart);
    const options = ['--vhost-user-blk', socket, '--reconnect', '1', '--with', 'fio', '--hook', hook, ...devopts];
    const text = await guest(folder, options, MEANWHILE, String(RESTARTS), 'restart');
    assert.match(text, new RegExp(`DONE ${RESTARTS}`));
  });
}

test('a guest goes on when its disk moves to another IOThread, and back', { skip, timeout: 2_400_000 }, async (t) => {
  const folder = scratch(t);
  const image = join(folder, 'a.qcow2');
  await create(image, { size: 32 * MIB });
  const [a, b] = await Promise.all([IOThread.start(), IOThread.start()]);
  const disk = await open(image, { iothread: a });
  const service = await serveVhostUser(disk, { iothreadVqMapping: [{ iothread: a }, { iothread: b }] });
  const hook = await hookFor(t, folder, () => disk.setAioContext(disk.iothread === a ? b : a));
  const options = ['--vhost-user-blk', service.socket, '--queues', '2', '--with', 'fio', '--hook', hook];
  const text = await guest(folder, options, MEANWHILE, String(MOVES), 'move');
  assert.match(text, new RegExp(`DONE ${MOVES}`));
  assert.equal((await service.stats()).connections, 1);
  await disk.close();
  await Promise.all([a.stop(), b.stop()]);
  await peer('qemu-img', 'check', image);
});
