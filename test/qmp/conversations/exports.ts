import { whyNoRing } from '../../../src/aio/select.ts';
import { conversation, step } from '../conversation.ts';

const RING = process.env.BLOCKPLANE_AIO !== 'pool' && (await whyNoRing()) === undefined;

export const nbdExports = conversation('exports and their server', () => {
  const server = { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } };
  const nbd = { type: 'nbd', id: 'e', 'node-name': 'n0' };
  return {
    steps: [
      step('block-export-add', nbd),
      step('block-export-add', { ...nbd, type: 'nonsense' }),
      step('block-export-add', { type: 'nbd' }),
      step('block-export-del', { id: 'e' }),
      step('nbd-server-stop'),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n0', size: 1048576 }),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'ro', 'read-only': true }),
      step('block-export-add', nbd),
      step('nbd-server-start', { addr: { type: 'unix', data: {} } }),
      step('nbd-server-start', { addr: { type: 'inet', data: { host: '127.0.0.1', port: 5 } } }),
      step('nbd-server-start', { ...server, 'max-connections': -1 }),
      step('nbd-server-start', { ...server, 'max-connections': 4294967296 }),
      step('nbd-server-start', server),
      step('nbd-server-start', server),
      step('block-export-add', { ...nbd, 'node-name': 'nowhere' }),
      step('block-export-add', { ...nbd, id: '1x' }),
      step('block-export-add', { ...nbd, id: '' }),
      step('block-export-add', { ...nbd, writable: 'on' }),
      step('block-export-add', { ...nbd, 'node-name': 'ro', writable: true }, { words: true }),
      step('query-block-exports'),
      step('block-export-add', nbd),
      step('block-export-add', nbd),
      step('block-export-add', { ...nbd, id: 'e2' }),
      step('block-export-add', { ...nbd, id: 'e2', name: 'second', description: 'another', writable: true }),
      step('block-export-add', { ...nbd, id: 'e3', name: 'third', bitmaps: ['nowhere'] }, { words: true }),
      step('query-block-exports'),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'n0' }),
      step('block-export-del', { id: 'e', mode: 'foo' }),
      step('block-export-del', { id: 'e' }, { event: 'BLOCK_EXPORT_DELETED' }),
      step('block-export-del', { id: 'e' }),
      step('block-export-del', { id: 'e2', mode: 'hard' }),
      step('block-export-add', nbd),
      step('nbd-server-stop'),
      step('query-block-exports'),
      step('nbd-server-stop'),
      step('blockdev-del', { 'node-name': 'n0' }),
    ],
  };
});

export const vhostUserExports = conversation('a vhost-user-blk export', () => {
  const vhost = {
    type: 'vhost-user-blk',
    id: 'v',
    'node-name': 'n0',
    addr: { type: 'unix', path: '$DIR/vhost.sock' },
  };
  return {
    skip: RING ? false : 'io_uring is not used here',
    steps: [
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n0', size: 1048576 }),
      step('block-export-add', vhost),
      step('block-export-add', { ...vhost, id: 'v2', addr: { type: 'inet', host: 'x', port: '1' } }),
      step('query-block-exports'),
      step('block-export-del', { id: 'v' }, { event: 'BLOCK_EXPORT_DELETED' }),
      step('query-block-exports'),
      step('blockdev-del', { 'node-name': 'n0' }),
    ],
  };
});
