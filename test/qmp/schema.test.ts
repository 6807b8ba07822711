import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs } from '../harness.ts';
import { type Fields, pair } from './conversation.ts';
import { differences } from './schema-compare.ts';
import { DIFFERENCES } from './schema-differences.ts';

test(
  'the schema is that of qemu-storage-daemon, but for what there are reasons for',
  needs('qemu-storage-daemon'),
  async (t) => {
    const { theirs, ours } = await pair(t);
    const [our, their] = (await Promise.all(
      [ours, theirs].map(async (each) => (await each.execute('query-qmp-schema', {})).return),
    )) as [Fields[], Fields[]];
    const listed = DIFFERENCES.flatMap(({ at }) => Object.entries(at));
    const found = differences(our, their);
    const sorted = (all: Iterable<readonly [string, string]>) =>
      [...all].map(([path, text]) => `${path}: ${text}`).sort();
    assert.deepEqual(sorted(found), sorted(listed));
    const names = (all: Fields) => (all.return as Fields[]).map(({ name }) => String(name)).sort();
    const commands = await Promise.all(
      [ours, theirs].map(async (each) => names(await each.execute('query-commands', {}))),
    );
    const known = (all: Fields[]) =>
      all
        .filter((one) => one['meta-type'] === 'command')
        .map(({ name }) => String(name))
        .sort();
    assert.deepEqual(commands, [known(our), known(their)]);
  },
);
