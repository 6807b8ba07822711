import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

export const reopenedNodes = conversation('nodes are reopened', () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields = {}): Fields => ({
    driver: 'qcow2',
    'node-name': 'q',
    file: 'f',
    backing: null,
    ...more,
  });
  const show = step('query-named-block-nodes', { flat: true });
  return {
    steps: [
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2' }),
      step('blockdev-add', { driver: 'file', 'node-name': 'bf', filename: '$DIR/base.qcow2' }),
      step('blockdev-add', { driver: 'qcow2', 'node-name': 'b', file: 'bf', 'read-only': true }),
      step('blockdev-add', image()),
      reopen({ driver: 'qcow2' }),
      reopen({ driver: 'qcow2', file: 'f' }),
      reopen(image({ 'node-name': 'nowhere' })),
      step('blockdev-reopen', { options: 5 }),
      step('blockdev-reopen', { options: [5] }),
      // None at all is its end.
      reopen(image()),
      reopen(image({ driver: 'raw' }), { words: true }),
      reopen(image({ 'detect-zeroes': 'on' })),
      show,
      reopen(image({ cache: { 'no-flush': true } })),
      show,
      reopen(image()),
      reopen(image({ backing: 'b' })),
      step('x-debug-query-block-graph'),
      reopen(image({ backing: 'nowhere' }), { words: true }),
      show,
      reopen(image({ backing: null })),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'q' }),
    ],
    prepare: async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/base.qcow2`, '4M');
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  };
});

export const reopenedOptions = conversation("options of a driver's own change", () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const image = (more: Fields): Fields => ({ driver: 'qcow2', 'node-name': 'q', file: 'f', ...more });
  const limited = (group: string): Fields => ({
    ...{ driver: 'throttle', 'node-name': 't', file: 'q', 'throttle-group': group },
  });
  const part = (more: Fields): Fields => ({ driver: 'raw', 'node-name': 'r', file: 'n', ...more });
  const show = step('query-named-block-nodes', { flat: true });
  const run = (id: string, command = 'object-del') => step(command, { id });
  return {
    steps: [
      step('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2' }),
      step('blockdev-add', image({})),
      reopen(image({ 'lazy-refcounts': true })),
      reopen(image({ 'l2-cache-size': 131072, 'cache-clean-interval': 5 })),
      reopen(image({ 'overlap-check': 'all', 'pass-discard-request': true })),
      reopen(image({ 'l2-cache-entry-size': 1 }), { words: true }),
      reopen(image({})),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g1' }),
      step('object-add', { 'qom-type': 'throttle-group', id: 'g2' }),
      step('blockdev-add', limited('g1')),
      reopen(limited('g2')),
      run('g1'),
      run('g2'),
      reopen(limited('nowhere'), { words: true }),
      run('g2'),
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1048576 }),
      step('blockdev-add', part({})),
      reopen(part({ offset: 4096 })),
      show,
      reopen(part({ size: 8192 })),
      show,
      reopen(part({ size: 2097152 }), { words: true }),
      show,
      reopen({ driver: 'null-co', 'node-name': 'n', size: 4096 }, { words: true }),
      reopen({ driver: 'file', 'node-name': 'f', filename: '$DIR/x.qcow2', locking: 'on' }, { words: true }),
      step('blockdev-del', { 'node-name': 't' }),
      run('g2'),
    ],
    prepare: async (directory) => {
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/x.qcow2`, '4M');
    },
  };
});

/** An image over another one. */
async function makeOverlay(directory: string): Promise<void> {
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/base.qcow2`, '4M');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', `${directory}/o.qcow2`);
}

function file(more: Fields = {}): Fields {
  return { driver: 'file', 'node-name': 'of', filename: '$DIR/o.qcow2', ...more };
}

/** `its`: of the file. */
function base(more: Fields = {}, its: Fields = {}): Fields {
  const below = { driver: 'file', 'node-name': 'bf', filename: '$DIR/base.qcow2', ...its };
  return { driver: 'qcow2', 'node-name': 'b', file: below, ...more };
}

function image(more: Fields = {}): Fields {
  return { driver: 'qcow2', 'node-name': 'o', file: file(), backing: base(), ...more };
}

export const reopenedWithin = conversation('options in the place of a child are for the node that is there', () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const show = step('query-named-block-nodes', { flat: true });
  const words = { words: true };
  return {
    steps: [
      step('blockdev-add', image()),
      reopen(image()),
      reopen(image({ file: file({ 'detect-zeroes': 'on' }), backing: base({}, { 'detect-zeroes': 'on' }) })),
      show,
      // What is not given goes back to its default, and a name alone says nothing of the node.
      reopen(image({ backing: 'b' })),
      show,
      reopen(image({ cache: { 'no-flush': true } })),
      show,
      reopen(image({ cache: { 'no-flush': true }, file: file({ cache: { 'no-flush': false } }) })),
      show,
      reopen(image({ cache: { 'no-flush': true } })),
      reopen(image({ file: 'of', backing: 'b' })),
      show,
      reopen(image()),
      show,
      reopen(image({ backing: base({ 'lazy-refcounts': true, 'read-only': false }) })),
      show,
      reopen(image({ 'read-only': true })),
      show,
      reopen(image({ 'read-only': true, file: file({ 'read-only': false }) })),
      show,
      reopen(image({ file: file({ 'read-only': true }) }), words),
      reopen(image({ file: file({ 'auto-read-only': true }) })),
      show,
      // What cannot change.
      reopen(image({ file: file({ filename: '$DIR/base.qcow2' }) })),
      reopen(image({ file: file({ 'node-name': 'other' }) })),
      reopen(image({ file: file({ locking: 'on' }) })),
      reopen(image({ file: file({ 'force-share': true }) })),
      reopen(image({ file: file({ driver: 'host_device' }) })),
      reopen(image({ backing: base({ driver: 'raw' }) })),
      reopen(image({ backing: base({}, { filename: '$DIR/o.qcow2' }) })),
      reopen(image({ backing: base({ file: 'nowhere' }) }), words),
      reopen(image({ backing: base({ 'l2-cache-entry-size': 1 }) }), words),
      reopen(image({ 'detect-zeroes': 'on', backing: base({ 'l2-cache-entry-size': 1 }) }), words),
      reopen(image({ file: file({ nonsense: 1 }) })),
      reopen(image({ file: { driver: 'file' } })),
      reopen(image({ file: { driver: 'nonsense' } })),
      reopen(image({ file: null })),
      reopen(image({ 'data-file': { driver: 'null-co' } })),
      reopen(image({ 'data-file': 'of' })),
      show,
      reopen(image({ backing: null })),
      reopen(image({ backing: base() })),
      step('x-debug-query-block-graph'),
      step('blockdev-del', { 'node-name': 'o' }),
    ],
    prepare: makeOverlay,
  };
});

export const reopenedReferences = conversation('nodes that were opened by themselves have options of their own', () => {
  const reopen = (options: Fields, how = {}) => step('blockdev-reopen', { options: [options] }, how);
  const below: Fields = { driver: 'null-co', 'node-name': 'n', size: 4096 };
  const limited = (file: Fields | string): Fields => ({
    ...{ driver: 'throttle', 'node-name': 't', 'throttle-group': 'g' },
    file,
  });
  const part = (file: Fields | string, more: Fields = {}): Fields => ({
    ...{ driver: 'raw', 'node-name': 'r', ...more },
    file,
  });
  return {
    steps: [
      step('object-add', { 'qom-type': 'throttle-group', id: 'g' }),
      step('blockdev-add', below),
      step('blockdev-add', part('n')),
      reopen(part(below)),
      reopen(part({ driver: 'null-co' })),
      step('blockdev-del', { 'node-name': 'r' }),
      step('blockdev-del', { 'node-name': 'n' }),
      // Those of a file that an image names were opened with it.
      step('blockdev-add', { driver: 'qcow2', 'node-name': 'o', file: { driver: 'file', filename: '$DIR/o.qcow2' } }),
      reopen({
        ...{ driver: 'qcow2', 'node-name': 'o', file: { driver: 'file', filename: '$DIR/o.qcow2' } },
        backing: {
          ...{ driver: 'qcow2', 'detect-zeroes': 'on' },
          file: { driver: 'file', filename: '$DIR/base.qcow2' },
        },
      }),
      step('query-named-block-nodes', { flat: true }),
      step('blockdev-del', { 'node-name': 'o' }),
      step('blockdev-add', limited(part(below))),
      reopen(limited(part(below, { 'detect-zeroes': 'on' }))),
      step('query-named-block-nodes', { flat: true }),
      reopen(limited(part({ ...below, size: 8192 }))),
      reopen(limited(part({ driver: 'null-co', 'node-name': 'n' }))),
      reopen(limited(part({ ...below, 'read-zeroes': true }))),
      step('blockdev-add', { ...below, 'node-name': 'n2' }),
      reopen(limited(part('n2'))),
      step('x-debug-query-block-graph'),
      reopen(limited(part({ ...below, 'node-name': 'n2' }))),
      reopen(limited({ driver: 'null-co', 'node-name': 'zz' })),
      // Of drivers that keep what is below them.
      step('blockdev-add', { driver: 'blkdebug', 'node-name': 'd', image: 'r' }),
      reopen({ driver: 'blkdebug', 'node-name': 'd', image: 'r' }),
      reopen({ driver: 'blkdebug', 'node-name': 'd', image: 'n2' }),
    ],
    prepare: makeOverlay,
  };
});
