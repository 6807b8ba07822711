import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAIN, needs, peer, scratch } from '../harness.ts';
import { type Fields, Peer } from './conversation.ts';

async function images(directory: string): Promise<void> {
  for (const name of ['a', 'b', 'over', 'over2']) {
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}.qcow2`, '4M');
  }
}

test('an overlay is made and put over a node that is exported', needs('qemu-img', 'qemu-io'), async (t) => {
  const directory = scratch(t);
  await images(directory);
  const ours = await Peer.start(
    t,
    directory,
    [process.execPath, MAIN, 'qemu-storage-daemon'],
    [
      ...['--blockdev', 'qcow2,node-name=a,file.driver=file,file.filename=$DIR/a.qcow2'],
      ...['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd', '--export', 'nbd,id=e,node-name=a,writable=on'],
    ],
  );
  const uri = `nbd+unix:///a?socket=${directory}/nbd`;
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 1 0 64k', uri);
  const reply = await ours.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'a', 'snapshot-file': '$DIR/made.qcow2', 'snapshot-node-name': 'made', format: 'qcow2' },
  });
  assert.deepEqual(reply, { return: {} });
  await peer('qemu-io', '-f', 'raw', '-c', 'read -P 1 0 64k', '-c', 'write -P 2 64k 64k', uri);
  assert.equal(await ours.quit(), 0);
  const map = JSON.parse(await peer('qemu-img', 'map', '--output=json', `${directory}/made.qcow2`)) as Fields[];
  assert.deepEqual(
    map.slice(0, 2).map(({ start, depth }) => [start, depth]),
    [
      [0, 1],
      [65536, 0],
    ],
  );
});
