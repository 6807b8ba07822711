import assert from 'node:assert/strict';
import { test } from 'node:test';
import { magicOf } from '../proto/magic.ts';
import { blockdevOf, isProbed, nameOf } from './options.ts';

test('a file name becomes raw over file, with the options where they belong', () => {
  assert.deepEqual(blockdevOf('disk.img'), {
    discard: 'unmap',
    driver: 'raw',
    file: { driver: 'file', filename: 'disk.img' },
  });
  const options = { readOnly: true, forceShare: true, cache: 'none', discard: 'unmap', detectZeroes: 'on' } as const;
  assert.deepEqual(blockdevOf('disk.img', options), {
    driver: 'raw',
    'read-only': true,
    'force-share': true,
    discard: 'unmap',
    'detect-zeroes': 'on',
    cache: { direct: true, 'no-flush': false },
    file: { driver: 'file', filename: 'disk.img' },
  });
});

test('a tree keeps what it says itself, and takes the rest', () => {
  const tree = { driver: 'null-co', size: 4096, discard: 'ignore' } as const;
  assert.deepEqual(blockdevOf(tree, { discard: 'unmap', readOnly: true }), { ...tree, 'read-only': true });
  assert.equal(nameOf({ driver: 'raw', file: { driver: 'file', filename: 'x' } }), 'x');
  assert.equal(nameOf({ driver: 'raw', file: 'node0' }), 'node0');
});

test('only a file name without a format is probed', () => {
  assert.equal(isProbed('disk.img'), true);
  assert.equal(isProbed('disk.img', { format: 'raw' }), false);
  assert.equal(isProbed('null-co://'), false);
  assert.equal(isProbed({ driver: 'file', filename: 'x' }), false);
});

test('a name that ends with .qcow2, and options of qcow2, say the format', () => {
  assert.deepEqual(blockdevOf('a.QCOW2'), {
    discard: 'unmap',
    driver: 'qcow2',
    file: { driver: 'file', filename: 'a.QCOW2' },
  });
  assert.equal(isProbed('a.qcow2'), false);
  assert.equal(isProbed('a.qcow2.img'), true);
  assert.equal(blockdevOf('a.qcow2', { format: 'raw' }).driver, 'raw');
  assert.deepEqual(blockdevOf('a', { qcow2: { snapshot: 's' }, readOnly: true }), {
    ...{ driver: 'qcow2', discard: 'unmap', 'read-only': true, snapshot: 's' },
    file: { driver: 'file', filename: 'a' },
  });
});

test('what cannot be a file name or a mode is refused', () => {
  assert.throws(() => blockdevOf(''), /empty/);
  assert.throws(() => blockdevOf('a\0b'), /NUL/);
  assert.throws(() => blockdevOf('a', { format: 'vmdk' as never }), /Unknown format 'vmdk'/);
  assert.throws(() => blockdevOf('a', { format: 'raw', qcow2: { snapshot: 's' } }), /options of qcow2/);
  assert.throws(() => blockdevOf('a', { discard: 'yes' as never }), /Unknown discard mode 'yes'/);
});

test('other formats are known by their magic; zeroes and a boot sector are none', () => {
  const head = (text: string, at = 0): Uint8Array => {
    const bytes = new Uint8Array(512);
    for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
    return bytes;
  };
  assert.equal(magicOf(head('QFI\xfb\0\0\0\x03')), 'qcow2');
  assert.equal(magicOf(head('QFI\xfb\xff')), 'qcow');
  assert.equal(magicOf(head('KDMV')), 'vmdk');
  assert.equal(magicOf(head('vhdxfile')), 'vhdx');
  assert.equal(magicOf(head('\x7f\x10\xda\xbe', 0x40)), 'vdi');
  assert.equal(magicOf(head('LUKS\xba\xbe')), 'luks');
  assert.equal(magicOf(head('')), undefined);
  assert.equal(magicOf(head('\x55\xaa', 510)), undefined);
  assert.equal(magicOf(new Uint8Array(3)), undefined);
});

test('only the two null URLs say their format; a file whose name begins like one is looked at', () => {
  for (const target of ['null-co://', 'null-aio://']) assert.equal(isProbed(target), false);
  for (const target of ['null-co', 'null-disk.img', 'null-co://x', 'disk.img']) {
    assert.equal(isProbed(target), true);
  }
  assert.equal(isProbed('disk.img', { format: 'raw' }), false);
});

test('an NBD URI becomes a node by itself, or the file of a format that is given', () => {
  const remote = { driver: 'nbd', server: { type: 'unix', path: '/s' }, export: 'a.qcow2' } as const;
  const uri = 'nbd+unix:///a.qcow2?socket=/s';
  assert.deepEqual(blockdevOf(uri), { discard: 'unmap', ...remote });
  assert.deepEqual(blockdevOf(uri, { format: 'raw', readOnly: true }), {
    discard: 'unmap',
    'read-only': true,
    ...remote,
  });
  assert.deepEqual(blockdevOf(uri, { format: 'qcow2' }), { discard: 'unmap', driver: 'qcow2', file: remote });
  assert.equal(isProbed(uri), false);
  assert.equal(nameOf(remote), uri);
  assert.equal(nameOf({ driver: 'qcow2', file: { ...remote, export: '\ud800' } }), 'nbd+unix:///%EF%BF%BD?socket=/s');
  const inet = { driver: 'nbd', server: { type: 'inet', host: '::1', port: '1' } } as const;
  assert.equal(nameOf({ driver: 'raw', file: inet }), 'nbd://[::1]:1/');
  assert.equal(nameOf({ driver: 'nbd' } as never), 'nbd://undefined:10809/');
});
