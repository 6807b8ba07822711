import assert from 'node:assert/strict';
import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

export const objectsComeAndGo = conversation('objects come, are shown and go', () => {
  return {
    steps: [
      step('object-add', { 'qom-type': 'iothread', id: 't0' }),
      step('object-add', { 'qom-type': 'iothread', id: 't0' }),
      step('object-add', { 'qom-type': 'nonsense', id: 't1' }),
      step('object-add', { 'qom-type': 'iothread' }),
      step('object-add', { id: 't1' }),
      step('object-add', { 'qom-type': 'iothread', id: 't1', foo: 1 }),
      step('object-add', { 'qom-type': 'iothread', id: 't1', 'poll-max-ns': 'x' }),
      step('object-add', { 'qom-type': 'iothread', id: '1x' }, { words: true }),
      step('object-del', { id: 'nowhere' }),
      step('qom-list', { path: '/' }),
      step('qom-list', { path: '/objects' }),
      step('qom-list', { path: '/objects/t0' }),
      step('qom-list', { path: 't0' }),
      step('qom-list', { path: '/nowhere' }),
      step('qom-get', { path: '/objects/t0', property: 'type' }),
      step('qom-get', { path: '/objects/t0', property: 'nowhere' }),
      step('qom-get', { path: '/nowhere', property: 'x' }),
      step('qom-list-properties', { typename: 'iothread' }),
      step('qom-list-properties', { typename: 'nonsense' }),
      step('object-add', { 'qom-type': 'secret', id: 's0', data: 'letmein' }),
      step('object-add', { 'qom-type': 'secret', id: 's1' }, { words: true }),
      step('object-add', { 'qom-type': 'secret', id: 's2', data: 'x', file: 'y' }, { words: true }),
      step('object-add', { 'qom-type': 'secret', id: 's3', data: '!!', format: 'base64' }, { words: true }),
      step('object-add', { 'qom-type': 'secret', id: 's4', format: 'foo' }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g0', limits: 5 }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g0', limits: { nonsense: 1 } }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g0', limits: { 'bps-read': 'x' } }),
      step('object-add', { 'qom-type': 'authz-list', id: 'l0', rules: {} }),
      step('object-add', { 'qom-type': 'authz-list', id: 'l0', rules: [{ policy: 'allow' }] }),
      step('object-add', { 'qom-type': 'authz-list', id: 'l0', rules: [{ match: 'x', policy: 'nonsense' }] }),
      step('object-add', { 'qom-type': 'authz-list', id: 'l0', rules: [{ match: 'x', policy: 'allow' }] }),
      step('qom-get', { path: '/objects/s0', property: 'format' }),
      step(
        'qom-get',
        { path: '/objects/s0', property: 'data' },
        { differs: 'a secret is not told', expect: ({ error }) => assert.ok(error) },
      ),
      step('object-del', { id: 's0' }),
      step('object-del', { id: 't0' }),
      step('object-del', { id: 't0' }),
      step('qom-list', { path: '/objects' }),
    ],
  };
});

export const encryptedImages = conversation('an encrypted image opens with the secret that is named', () => {
  const image = (secret: string): Fields => ({
    driver: 'qcow2',
    'node-name': 'q',
    encrypt: { format: 'luks', 'key-secret': secret },
    file: { driver: 'file', filename: '$DIR/x.qcow2' },
  });
  const create = (options: Fields, how = {}) => step('blockdev-create', { 'job-id': 'c', options }, how);
  const encrypted: Fields = { driver: 'qcow2', file: 'f', size: 1048576 };
  const dismiss = step('job-dismiss', { id: 'c' });
  return {
    steps: [
      step('blockdev-add', image('s0'), { words: true }),
      step('object-add', { 'qom-type': 'secret', id: 's0', data: 'letmein' }),
      step('blockdev-add', image('s0')),
      step('blockdev-del', { 'node-name': 'q' }),
      // One that is made.
      create({ driver: 'file', filename: '$DIR/made', size: 0 }, { until: 'concluded' }),
      dismiss,
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/made' }),
      create({ ...encrypted, encrypt: { format: 'nonsense' } }),
      create({ ...encrypted, encrypt: { format: 'luks', nonsense: 1 } }),
      create(
        { ...encrypted, encrypt: { format: 'luks', 'key-secret': 's0', 'iter-time': 10 } },
        { until: 'concluded', measures: true },
      ),
      step('query-jobs'),
      dismiss,
      step('blockdev-add', { ...image('s0'), file: 'f' }),
    ],
    prepare: async (directory) => {
      const secret = ['--object', 'secret,id=s,data=letmein'];
      const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
      await peer('qemu-img', 'create', '-q', ...secret, '-f', 'qcow2', '-o', options, `${directory}/x.qcow2`, '1M');
    },
  };
});
