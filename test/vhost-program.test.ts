/** `blockplane vhost-user-blk`: what management layers expect of a back-end program. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { open } from '../src/index.ts';
import { close } from '../src/native/file.ts';
import * as native from '../src/native/socket.ts';
import { type Received, recvFds, sendFds, socketpair } from '../src/native/socket.ts';
import { FrontRequest, HEADER_BYTES } from '../src/proto/vhost-user/constants.ts';
import { decodeU64, encodeMessage } from '../src/proto/vhost-user/message.ts';
import { blockplane, MAIN, run, scratch, sparse } from './harness.ts';

const MIB = 2 ** 20;
const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : false;

test('--print-capabilities says so in JSON, whatever else is given, also under the name of a back-end', async (t) => {
  const link = join(scratch(t), 'vhost-user-blk');
  symlinkSync(MAIN, link);
  for (const { code, stdout, stderr } of [
    await blockplane('vhost-user-blk', '--fd=99', '--print-capabilities', '--read-only'),
    await run(process.execPath, [link, '--print-capabilities']),
  ]) {
    assert.deepEqual([code, stderr], [0, '']);
    assert.deepEqual(JSON.parse(stdout), { type: 'block', features: ['read-only', 'blk-file'] });
  }
});

test('the descriptor says what the program is', () => {
  const file = new URL('../../share/vhost-user/50-blockplane-blk.json', import.meta.url);
  const { type, binary, description } = JSON.parse(readFileSync(file, 'utf8')) as Record<string, string>;
  assert.equal(type, 'block');
  assert.match(binary!, /^\/.*\/vhost-user-blk$/);
  assert.ok(description);
});

for (const [args, message] of [
  [[], /give one of --socket-path and --fd/],
  [['--socket-path=a', '--fd=3', '--blk-file=b'], /give one of --socket-path and --fd/],
  [['--socket-path=a'], /--blk-file is missing/],
  [['--fd=x', '--blk-file=b'], /--fd: 'x' is not a whole number/],
  [['--socket-path=a', '--blk-file=b', 'c'], /unexpected argument 'c'/],
  [['--socket-path'], /option '--socket-path' requires an argument/],
  [['--colour'], /unrecognized option '--colour'/],
] as const) {
  test(`bad usage: ${args.join(' ')}`, async () => {
    const { code, stderr } = await blockplane('vhost-user-blk', ...args);
    assert.equal(code, 2);
    assert.match(stderr, message);
  });
}

test('it serves in the foreground until SIGTERM, and leaves no socket', { skip, timeout: 30_000 }, async (t) => {
  const folder = scratch(t);
  const [image, socket] = [sparse(join(folder, 'a.img'), MIB), join(folder, 's')];
  const args = [MAIN, 'vhost-user-blk', `--socket-path=${socket}`, `--blk-file=${image}`, '--read-only'];
  const program = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => program.kill('SIGKILL'));
  for (let tries = 0; !existsSync(socket); tries++) {
    assert.ok(tries < 1000);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const options = { driver: 'virtio-blk-vhost-user', path: socket } as const;
  await assert.rejects(open(options), { code: 'EACCES' });
  const disk = await open(options, { readOnly: true });
  assert.equal(disk.size, MIB);
  await disk.close();
  program.kill('SIGTERM');
  assert.deepEqual(await once(program, 'exit'), [0, null]);
  assert.equal(program.stdout.read(), null);
  assert.equal(existsSync(socket), false);
});

test('it goes on with a connection that was handed over, and ends with it', { skip, timeout: 30_000 }, async (t) => {
  const image = sparse(join(scratch(t), 'a.img'), MIB);
  const [ours, theirs] = socketpair() as readonly [number, number];
  const args = [MAIN, 'vhost-user-blk', '--fd=3', `--blk-file=${image}`];
  const program = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit', theirs] });
  close(theirs);
  t.after(() => program.kill('SIGKILL'));
  sendFds(ours, encodeMessage(FrontRequest.GET_QUEUE_NUM), []);
  let answer: Received | number = -1;
  for (let tries = 0; typeof answer === 'number'; tries++) {
    assert.ok(tries < 1000);
    await new Promise((resolve) => setTimeout(resolve, 20));
    answer = recvFds(ours, 64, 0);
  }
  assert.equal(decodeU64(answer.bytes.subarray(HEADER_BYTES)), 64);
  close(ours);
  assert.deepEqual(await once(program, 'exit'), [0, null]);
});

test('it takes a socket that listens, and front-ends one after the other', { skip, timeout: 30_000 }, async (t) => {
  const folder = scratch(t);
  const [image, socket] = [sparse(join(folder, 'a.img'), MIB), join(folder, 's')];
  const address = { kind: 'unix', path: socket } as const;
  const listener = native.socket(address);
  assert.ok(native.bind(listener, address) === 0 && native.listen(listener) === 0);
  const args = [MAIN, 'vhost-user-blk', '--fd=3', `--blk-file=${image}`];
  const program = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit', listener] });
  close(listener);
  t.after(() => program.kill('SIGKILL'));
  for (let round = 0; round < 2; round++) {
    const disk = await open({ driver: 'virtio-blk-vhost-user', path: socket });
    await disk.write(Buffer.alloc(512, round + 1), 0, 512, 0);
    await disk.close();
  }
  program.kill('SIGTERM');
  assert.deepEqual(await once(program, 'exit'), [0, null]);
  assert.equal(readFileSync(image)[0], 2);
});
