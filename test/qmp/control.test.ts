import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs } from '../harness.ts';
import { alike, converse, pair, step } from './conversation.ts';

const WITH = needs('qemu-storage-daemon');

test('what is no command is refused as by qemu-storage-daemon, and the session goes on', WITH, async (t) => {
  const { theirs, ours } = await pair(t, []);
  const lines = [
    '{"execute":"foo"}',
    '{"execute":5}',
    '{"execute":null}',
    '{"arguments":{}}',
    '{"execute":"query-version","arguments":[]}',
    '{"execute":"query-version","arguments":null}',
    '{"execute":"query-version","foo":1}',
    '{"execute":"query-version","id":5,"bar":1}',
    '{"execute":"query-version","arguments":{"x":1}}',
    '{"execute":"qmp_capabilities"}',
    '{"exec-oob":"query-version"}',
    '{"execute":"query-version","exec-oob":"a"}',
    '{"execute":"query-version","control":{"run-oob":true}}',
    '[]',
    '5',
    '"x"',
    'null',
    '{"a":{"__proto__":{"execute":"quit"}}}',
    '{"__proto__":{"execute":"quit"}}',
    '{"execute":"constructor"}',
    '{"execute":"__proto__"}',
    '{"execute":"toString"}',
    '{"execute":"query-version","id":{"a":9223372036854775807,"b":18446744073709551615,"c":-9223372036854775808}}',
    '{"execute":"query-version","id":[1,null,true,"\\u0000\\ud83d\\ude00",{"__proto__":1}]}',
    '{"execute":"query-version","id":{"constructor":1,"toString":2}}',
  ];
  for (const line of lines) {
    const [reply, own] = await Promise.all([theirs.raw(`${line}\n`), ours.raw(`${line}\n`)]);
    assert.deepEqual(alike(own, ours.directory), alike(reply, theirs.directory), line);
  }
});

test('character devices are as in qemu-storage-daemon', WITH, async (t) => {
  const ringbuf = { id: 'r', backend: { type: 'ringbuf', data: { size: 4096 } } };
  const socket = { type: 'socket', data: { addr: { type: 'unix', data: { path: '$DIR/c.sock' } }, wait: false } };
  await converse(t, [
    step('query-chardev'),
    step('chardev-add', ringbuf),
    step('chardev-add', ringbuf),
    step('ringbuf-write', { device: 'r', data: 'aGk=', format: 'base64' }),
    step('ringbuf-read', { device: 'r', size: 100 }),
    step('ringbuf-read', { device: 'r', size: 100 }),
    step('ringbuf-write', { device: 'r', data: 'grüße' }),
    step('ringbuf-read', { device: 'r', size: 2 }),
    step('ringbuf-read', { device: 'r', size: 100, format: 'base64' }),
    step('ringbuf-read', { device: 'r', size: -1 }),
    step('ringbuf-read', { device: 'r', size: 0 }),
    step('ringbuf-read', { device: 'zz', size: 1 }),
    step('ringbuf-read', { device: 'mon', size: 1 }),
    step('ringbuf-read', { device: 'r', size: 1, format: 'hex' }),
    step('ringbuf-write', { device: 'zz', data: '' }),
    step('chardev-add', { id: 'r2', backend: { type: 'ringbuf', data: { size: 5 } } }),
    step('chardev-add', { id: 'n', backend: { type: 'null', data: {} } }),
    step('chardev-add', { id: 'n2', backend: { type: 'null' } }),
    step('chardev-add', { id: 'n3', backend: { type: 'nonsense', data: {} } }),
    step('chardev-add', { id: 'n4', backend: {} }),
    step('chardev-add', { id: 'n5' }),
    step('chardev-add', { id: 's', backend: socket }),
    step('chardev-add', { id: 'f', backend: { type: 'file', data: { out: '$DIR/out' } } }),
    step('query-chardev'),
    step('chardev-remove', { id: 'mon' }),
    step('chardev-remove', { id: 'zz' }),
    step('chardev-remove', { id: 's' }),
    step('chardev-remove', { id: 'r' }),
    step('chardev-remove', { id: 'r' }),
    step('chardev-change', { id: 'zz', backend: { type: 'null', data: {} } }),
    step('chardev-send-break', { id: 'zz' }),
    step('chardev-send-break', { id: 'n' }),
  ]);
});
