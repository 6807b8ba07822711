/** What documents tell people to type: it runs as it stands there. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, projectFile, run, scratch } from './harness.ts';

const BUNDLE = projectFile('dist/bundle/main.cjs');
const WITH = { ...needs('bash'), timeout: 60_000 };
const BUILT = { ...WITH, skip: WITH.skip || (existsSync(BUNDLE) ? false : 'dist/bundle is not built') };

/** The blocks of a document in their order: programs, which begin with their names, and commands. */
function blocksOf(document: string): readonly { readonly language: string; readonly text: string }[] {
  const text = readFileSync(projectFile(document), 'utf8');
  return [...text.matchAll(/^```(sh|js)\n(.*?)^```$/gms)].map(([, language, block]) => ({
    language: language!,
    text: block!,
  }));
}

/** A directory where `blockplane` is a command and a package. */
function place(t: TestContext): { readonly directory: string; readonly env: string } {
  const directory = scratch(t);
  mkdirSync(join(directory, 'node_modules'));
  mkdirSync(join(directory, 'bin'));
  symlinkSync(projectFile('.'), join(directory, 'node_modules', 'blockplane'));
  const [node, main] = [process.execPath, BUNDLE].map((path) => `'${path}'`);
  writeFileSync(join(directory, 'bin', 'blockplane'), `#!/bin/sh\nexec ${node} ${main} "$@"\n`, { mode: 0o755 });
  symlinkSync(process.execPath, join(directory, 'bin', 'node'));
  return { directory, env: `cd '${directory}'; PATH='${directory}/bin':$PATH` };
}

test('the commands and programs of the guide to backups run as they stand there', BUILT, async (t) => {
  const { directory, env } = place(t);
  t.after(() => run('bash', ['-c', `${env}; [ ! -e daemon.pid ] || kill $(cat daemon.pid)`]));
  const blocks = blocksOf('docs/BACKUP.md');
  assert.ok(blocks.length >= 7, `${blocks.length} blocks`);
  for (const { language, text } of blocks) {
    const [, name] = /^\/\/ (\S+\.mjs)\b/.exec(text) ?? [];
    if (language === 'js') {
      writeFileSync(join(directory, name!), text);
      continue;
    }
    const { code, stdout, stderr } = await run('bash', ['-euo', 'pipefail', '-c', `${env}\n${text}`]);
    assert.equal(code, 0, `${text}\n${stdout}${stderr}`);
  }
});
