import assert from 'node:assert/strict';
import { test } from 'node:test';
import { activatedFds } from './activation.ts';
import { parseCount, parseSize, shellWord, sizeText, UsageError } from './report.ts';
import { parseListen, type RawServeOptions, serveOptions } from './serve-options.ts';

const NONE: RawServeOptions = {
  exportName: [],
  vhostUser: [],
  description: [],
  bitmap: [],
  object: [],
  iothread: [],
  allowDirectory: [],
  overlay: [],
};

test('sizes are powers of 1024, exact, and nothing else is one', () => {
  const sizes: [string, number][] = [
    ['0', 0],
    ['512', 512],
    ['64k', 65536],
    ['1.5G', 1.5 * 2 ** 30],
    ['2TiB', 2 ** 41],
    ['7MB', 7 * 2 ** 20],
  ];
  for (const [text, bytes] of sizes) assert.equal(parseSize(text, '--size'), bytes);
  for (const text of ['', '-1', '1X', '0.3', '1e9', '8P1', '9999999P', ' ']) {
    assert.throws(() => parseSize(text, '--size'), UsageError, text);
  }
  assert.equal(sizeText(0), '0 B');
  assert.equal(sizeText(1536), '1.5 KiB');
  assert.equal(sizeText(2 ** 30), '1 GiB');
  assert.throws(() => parseCount('1.5', '--x'), UsageError);
});

test('every form of --listen', () => {
  const inet = (host: string, port: number): object => ({ kind: 'inet', host, port });
  assert.deepEqual(parseListen('127.0.0.1:0'), inet('127.0.0.1', 0));
  assert.deepEqual(parseListen('[::1]:99'), inet('::1', 99));
  assert.deepEqual(parseListen('[::]'), inet('::', 10809));
  assert.deepEqual(parseListen(':7'), inet('127.0.0.1', 7));
  assert.deepEqual(parseListen('host'), inet('host', 10809));
  for (const bad of ['::1', 'a:b', 'a:1:2', '[::1', 'a:70000']) assert.throws(() => parseListen(bad), UsageError);
});

test('one image is the unnamed export, several go by their file names, made unique', () => {
  const names = (paths: string[], raw: Partial<RawServeOptions> = {}): string[] =>
    serveOptions(paths, { ...NONE, ...raw }).images.map((image) => image.exportName);
  assert.deepEqual(names([]), ['']);
  assert.deepEqual(names(['/x/a.img']), ['']);
  assert.deepEqual(names(['/x/a.img', '/y/a.img', 'b']), ['a', 'a-2', 'b']);
  assert.deepEqual(names(['/x/a.img', '/y/a.img'], { exportName: ['a'] }), ['a', 'a-2']);
});

test('images are spread over the threads in turn', () => {
  const threads = (raw: Partial<RawServeOptions>): string[] =>
    serveOptions(['a', 'b', 'c'], { ...NONE, ...raw }).images.map((image) => image.thread);
  assert.deepEqual(threads({}), ['io0', 'io0', 'io0']);
  assert.deepEqual(threads({ iothreads: '2' }), ['io0', 'io1', 'io0']);
  assert.deepEqual(threads({ iothread: ['x', 'y', 'x'] }), ['x', 'y', 'x']);
  assert.deepEqual(serveOptions(['a', 'b'], { ...NONE, iothread: ['x', 'x'] }).threads, ['x']);
  assert.throws(() => threads({ iothreads: '65' }), UsageError);
  assert.throws(() => threads({ iothreads: '2', iothread: ['x'] }), UsageError);
});

test('sockets of systemd are taken when they are for us, and the variables are gone', () => {
  const environment = { LISTEN_FDS: '2', LISTEN_PID: '42', LISTEN_FDNAMES: 'a:b', OTHER: 'x' };
  assert.deepEqual(activatedFds(environment, 42), [3, 4]);
  assert.deepEqual(environment, { OTHER: 'x' });
  assert.deepEqual(activatedFds({ LISTEN_FDS: '1', LISTEN_PID: '41' }, 42), []);
  assert.deepEqual(activatedFds({ LISTEN_FDS: 'x', LISTEN_PID: '42' }, 42), []);
  assert.deepEqual(activatedFds({}, 42), []);
});

test('words for a shell', () => {
  assert.equal(shellWord('/run/nbd.sock'), '/run/nbd.sock');
  assert.equal(shellWord("nbd:///it's?x"), "'nbd:///it'\\''s?x'");
});
