import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { needs, peer, run } from '../../../test/harness.ts';
import { AioContext } from '../../aio/context.ts';
import { PoolBackend } from '../../aio/pool/backend.ts';
import { checkImage } from '../../block/control.ts';
import type { CheckFix, CheckResult } from '../../block/driver.ts';
import { registerQcow2 } from './testing.ts';
import { DAMAGES, DamagedImage, KINDS, type Kind } from './testing-damage.ts';

/** What qemu-img says, by our names. */
type Counts = Omit<CheckResult, 'messages'>;

const NAMES: readonly (readonly [keyof CheckResult, string])[] = [
  ['checkErrors', 'check-errors'],
  ['corruptions', 'corruptions'],
  ['leaks', 'leaks'],
  ['corruptionsFixed', 'corruptions-fixed'],
  ['leaksFixed', 'leaks-fixed'],
  ['totalClusters', 'total-clusters'],
  ['allocatedClusters', 'allocated-clusters'],
  ['fragmentedClusters', 'fragmented-clusters'],
  ['compressedClusters', 'compressed-clusters'],
  ['imageEndOffset', 'image-end-offset'],
];

let folder = '';
let context: AioContext;

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  context = new AioContext(new PoolBackend());
  registerQcow2();
});

after(async () => {
  rmSync(folder, { recursive: true, force: true });
  await context.stop();
});

async function theirs(path: string, fix: CheckFix): Promise<Counts> {
  const repair = fix === 'none' ? [] : ['-r', fix];
  const { stdout, stderr } = await run('qemu-img', ['check', '--output=json', ...repair, path]);
  assert.match(stdout, /^\{/, `qemu-img check could not: ${stderr}`);
  const json = JSON.parse(stdout) as Record<string, number>;
  const counts = Object.fromEntries(NAMES.map(([ours, name]) => [ours, json[name] ?? 0]));
  return counts as unknown as Counts;
}

function ours(path: string, fix: CheckFix): Promise<CheckResult> {
  return checkImage(context, 'qcow2', { file: { driver: 'file', filename: path } }, fix);
}

function withoutMessages({ messages: _, ...counts }: CheckResult): Counts {
  return counts;
}

/** An image of a kind; made once. */
async function imageOf(kind: keyof typeof KINDS): Promise<string> {
  const path = join(folder, `${kind}.qcow2`);
  if (existsSync(path)) return path;
  const { size = '8M', options = [], commands = [], make }: Kind = KINDS[kind];
  const given = options.flatMap((option) => ['-o', option.replace('=external', `=${folder}/external`)]);
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...given, path, size);
  if (commands.length > 0) await peer('qemu-io', ...commands.flatMap((command) => ['-c', command]), path);
  await make?.(path);
  return path;
}

function damaged(path: string, damage: (image: DamagedImage) => void): string {
  const image = new DamagedImage(readFileSync(path));
  damage(image);
  const copy = join(folder, 'damaged.qcow2');
  writeFileSync(copy, image.bytes);
  return copy;
}

describe('a sound image has the counts of qemu-img check', needs('qemu-img', 'qemu-io'), () => {
  for (const kind of Object.keys(KINDS) as (keyof typeof KINDS)[]) {
    test(kind, async () => {
      const path = await imageOf(kind);
      const result = await ours(path, 'none');
      assert.deepEqual(result.messages, []);
      assert.deepEqual(withoutMessages(result), await theirs(path, 'none'));
    });
  }
});

describe('a damaged image has the counts of qemu-img check, and both repairs end alike', needs('qemu-img'), () => {
  for (const { name, kind, damage, same = true, ours: only, fixedDiffers = false } of DAMAGES) {
    test(`${kind}: ${name}`, async () => {
      const sound = await imageOf(kind);
      const path = damaged(sound, damage);
      const found = await ours(path, 'none');
      if (only !== 'check') assert.deepEqual(withoutMessages(found), await theirs(path, 'none'));
      assert.equal(found.messages.length > 0, found.corruptions + found.leaks > 0);

      const other = join(folder, 'theirs.qcow2');
      copyFileSync(path, other);
      const repaired = await ours(path, 'all');
      const { corruptions, leaks } = await theirs(path, 'none');
      assert.deepEqual({ corruptions, leaks }, left(repaired), repaired.messages.join('\n'));
      assert.deepEqual(new DamagedImage(readFileSync(path)).header.incompatible & 3, corruptions > 0 ? bits(other) : 0);
      if (same) assert.match(await peer('qemu-img', 'compare', sound, path), /identical/);
      if (only === 'check' || only === 'repair') return;
      const they = await theirs(other, 'all');
      assert.deepEqual(left(repaired), left(they));
      assert.equal(repaired.leaksFixed, they.leaksFixed);
      if (!fixedDiffers) assert.equal(repaired.corruptionsFixed, they.corruptionsFixed);
    });
  }
});

function left({ corruptions, leaks }: Counts): Pick<Counts, 'corruptions' | 'leaks'> {
  return { corruptions, leaks };
}

function bits(path: string): number {
  return new DamagedImage(readFileSync(path)).header.incompatible & 3;
}
