/** Jobs of a chain of many layers: the daemon's memory grows by a bounded amount for each of them. */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { withDaemon } from './daemon-process.ts';
import { needs, peer, scratch } from './harness.ts';

const MiB = 1024 * 1024;
const SIZE = 64 * MiB;
const FEW = 8;
const MANY = 64;
/** The bound. */
const LAYER_BYTES = MiB;

/** Layers with a MiB of data each. */
async function makeChain(directory: string, layers: number): Promise<void> {
  for (let n = 0; n < layers; n++) {
    const below = n === 0 ? [] : ['-b', `${n - 1}.qcow2`, '-F', 'qcow2'];
    const path = join(directory, `${n}.qcow2`);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...below, path, String(SIZE));
    await peer('qemu-io', '-f', 'qcow2', '-c', `write -P ${n + 1} ${n % 64}M 1M`, path);
  }
}

/** The most memory that the process has had so far, in bytes. */
function peakOf({ pid }: ChildProcess): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024;
}

/** What the daemon needs at most while it opens a chain and runs a job of all of it. */
async function peak(directory: string, layers: number, command: string): Promise<number> {
  let tree: object | undefined;
  for (let n = 0; n < layers; n++) {
    const file = { driver: 'file', filename: join(directory, `${n}.qcow2`) };
    tree = { driver: 'qcow2', 'node-name': `n${n}`, file, ...(tree ? { backing: tree } : {}) };
  }
  return withDaemon(directory, [], async (client, child) => {
    await client.execute('blockdev-add', tree as never);
    const job = { 'job-id': 'j', device: `n${layers - 1}`, 'auto-dismiss': false };
    await client.execute(command as never, job as never);
    for (let status = ''; status !== 'concluded'; await delay(10)) {
      const [seen] = await client.execute('query-jobs', {});
      status = seen!.status;
      if (status === 'ready') await client.execute('job-complete', { id: 'j' });
      assert.equal(seen!.error, undefined);
    }
    return peakOf(child);
  });
}

for (const command of ['block-stream', 'block-commit']) {
  test(`${command} of ${MANY} layers takes at most a MiB more for each of them`, {
    ...needs('qemu-img', 'qemu-io'),
    timeout: 120_000,
  }, async (t) => {
    const few = scratch(t);
    await makeChain(few, FEW);
    const many = scratch(t);
    await makeChain(many, MANY);
    const small = await peak(few, FEW, command);
    const large = await peak(many, MANY, command);
    t.diagnostic(`${small / MiB} MiB with ${FEW} layers, ${large / MiB} MiB with ${MANY}`);
    assert.ok(large - small <= (MANY - FEW) * LAYER_BYTES, `${(large - small) / (MANY - FEW) / MiB} MiB a layer`);
  });
}
