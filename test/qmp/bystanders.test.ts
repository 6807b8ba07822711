/** While a client of the monitor asks for everything that is wrong, guests of exports in two threads notice nothing. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../src/base/units.ts';
import { open } from '../../src/index.ts';
import { MAIN, pattern, scratch, sparse } from '../harness.ts';
import { type Fields, Peer } from './conversation.ts';

const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];
const DISKS = ['first', 'second'];
const BLOCK = 4096;

/** Writes and reads back until it is told to end; answers the longest time that one of both took, in ms. */
async function guest(
  uri: string,
  goesOn: () => boolean,
): Promise<{ readonly rounds: number; readonly longestMs: number }> {
  await using disk = await open(uri);
  let [rounds, longestMs] = [0, 0];
  for (; goesOn(); rounds++) {
    const bytes = pattern(BLOCK, rounds + 1);
    const at = (rounds % 256) * BLOCK;
    const began = performance.now();
    await disk.write(bytes, 0, BLOCK, at);
    assert.deepEqual((await disk.read(new Uint8Array(BLOCK), 0, BLOCK, at)).buffer, bytes);
    longestMs = Math.max(longestMs, performance.now() - began);
  }
  return { rounds, longestMs };
}

/** Bad in every way that there is, several times. */
async function annoy(ours: Peer): Promise<void> {
  const say = (command: string, args: Fields): Promise<Fields> => ours.execute(command, args);
  const raw = '"driver":"raw","file":{';
  for (let round = 0; round < 5; round++) {
    await ours.replies(`{"execute":"query-version","id":"${'\u007f'.repeat(2 * MiB)}"}`);
    await ours.replies(`{"execute":"query-version","id":[${'1,'.repeat(200_000)}1]}`);
    await ours.replies(`${'['.repeat(2000)}\u0001${'}'.repeat(2000)}`);
    for (const depth of [1000, 250]) {
      const nested = `{"node-name":"deep",${raw.repeat(depth)}"driver":"null-co"${'}'.repeat(depth + 1)}`;
      await ours.replies(`{"execute":"blockdev-add","arguments":${nested}}`);
    }
    await say('blockdev-create', {
      'job-id': 'c',
      options: { driver: 'qcow2', file: { driver: 'null-co' }, size: 65_536 },
    });
    for (const name of [...DISKS, 'deep', 'idle']) await say('blockdev-del', { 'node-name': name });
    await say('blockdev-add', { driver: 'null-co', 'node-name': 'idle', size: MiB });
    for (const device of DISKS) {
      await say('blockdev-mirror', { 'job-id': device, device, target: device, sync: 'full' });
      await say('blockdev-backup', { 'job-id': device, device, target: 'nowhere', sync: 'full' });
      await say('block_resize', { 'node-name': device, size: -1 });
      await say('blockdev-reopen', { options: [{ driver: 'raw', 'node-name': device, file: 'nowhere' }] });
      await say('block-export-del', { id: device, mode: 'safe' });
      await say('x-blockdev-set-iothread', { 'node-name': device, iothread: 'nowhere' });
    }
    await say('blockdev-mirror', { 'job-id': 'm', device: DISKS[0]!, target: 'idle', sync: 'full', speed: 65_536 });
    for (const command of ['job-pause', 'job-complete', 'job-finalize', 'job-resume', 'job-cancel', 'job-dismiss']) {
      await say(command, { id: 'm' });
    }
    await say('transaction', { actions: DISKS.map(() => ({ type: 'abort', data: {} })) });
    await say('nbd-server-start', { addr: { type: 'unix', data: { path: '/nowhere/at/all' } } });
  }
}

test('guests in two threads read what they wrote while everything wrong is asked for', {
  timeout: 120_000,
}, async (t) => {
  const directory = scratch(t);
  for (const name of DISKS) sparse(`${directory}/${name}.raw`, MiB);
  const ours = await Peer.start(t, directory, OURS, [
    ...['--object', 'iothread,id=io', '--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'],
    ...DISKS.flatMap((name) => ['--blockdev', `raw,node-name=${name},file.driver=file,file.filename=$DIR/${name}.raw`]),
    ...['--export', 'nbd,id=first,node-name=first,writable=on'],
    ...['--export', 'nbd,id=second,node-name=second,writable=on,iothread=io,fixed-iothread=on'],
  ]);
  let over = false;
  const guests = DISKS.map((name) => guest(`nbd+unix:///${name}?socket=${directory}/nbd`, () => !over));
  try {
    await annoy(ours);
  } finally {
    over = true;
  }
  const ends = await Promise.all(guests);
  for (const [i, { rounds, longestMs }] of ends.entries()) {
    t.diagnostic(`${DISKS[i]}: ${rounds} rounds, the longest ${Math.round(longestMs)} ms`);
    assert.ok(rounds > 0);
  }
  assert.equal(await ours.quit(), 0);
});
