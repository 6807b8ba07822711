/** Commands that have been replaced, and that clients use all the same. */
import { peer } from '../../harness.ts';
import { conversation, type Fields, step } from '../conversation.ts';

export const nbdServerAdd = conversation('exports by the commands of NBD servers', () => {
  const add = (more: Fields = {}) => step('nbd-server-add', { device: 'n', ...more });
  const remove = (name: string, mode?: string) => step('nbd-server-remove', { name, ...(mode ? { mode } : {}) });
  return {
    steps: [
      step('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 1048576 }),
      add(),
      step('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } }),
      add({ device: 'nowhere' }),
      add({ device: 5 }),
      add({ name: '1x' }),
      add(),
      add(),
      add({ name: 'other', description: 'the same again', writable: true }),
      step('query-block-exports'),
      remove('nowhere'),
      remove('n', 'nonsense'),
      remove('n', 'safe'),
      remove('n'),
      remove('other', 'hard'),
      step('query-block-exports'),
      step('nbd-server-stop'),
    ],
  };
});

export const blockJobVerbs = conversation('jobs by the commands of block jobs', () => {
  const verb = (name: string, job: Fields, how = {}) => step(`block-job-${name}`, job, how);
  const mirror = (more: Fields, how = {}) =>
    step('blockdev-mirror', { 'job-id': 'j', device: 'a', target: 'b', sync: 'full', ...more }, how);
  const at = { device: 'j' };
  const by = { id: 'j' };
  const node = (name: string) =>
    step('blockdev-add', { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: `$DIR/${name}` } });
  return {
    prepare: async (directory) => {
      for (const name of ['a', 'b'])
        await peer('qemu-img', 'create', '-q', '-f', 'qcow2', `${directory}/${name}`, '8M');
      await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 8M', `${directory}/a`);
    },
    steps: [
      ...['pause', 'resume', 'complete', 'cancel'].map((name) => verb(name, at)),
      ...['finalize', 'dismiss'].map((name) => verb(name, by)),
      node('a'),
      node('b'),
      mirror({ speed: 65536, 'auto-finalize': false, 'auto-dismiss': false }),
      verb('pause', at, { until: 'paused' }),
      verb('pause', at),
      verb('complete', at),
      verb('finalize', by),
      verb('dismiss', by),
      // Before it goes on: how far it then comes with the old speed is chance.
      verb('set-speed', { device: 'j', speed: 0 }),
      verb('resume', at, { event: 'BLOCK_JOB_READY' }),
      verb('resume', at),
      verb('finalize', by),
      verb('complete', at, { event: 'BLOCK_JOB_PENDING' }),
      step('query-jobs'),
      verb('complete', at),
      verb('pause', at),
      verb('finalize', by, { until: 'concluded' }),
      verb('cancel', at),
      verb('dismiss', by),
      verb('dismiss', by),
      step('query-block-jobs'),
    ],
  };
});
