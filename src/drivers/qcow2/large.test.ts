/** Disks of 16 TiB, and tables for a million clusters: all of it works, in memory that has a bound. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { needs, peer, run, scratch } from '../../../test/harness.ts';
import { GiB, KiB, MiB } from '../../base/units.ts';
import type { LargeReport } from './testing-large.ts';

const PROGRAM = fileURLToPath(new URL('./testing-large.js', import.meta.url));
/** What Node itself may take on the way: compiled code, and heap that has been free before. Node 24 was seen to take
 *  50 MB. What we take is held by the two bounds on heap and buffers. */
const NODE_BYTES = 64 * MiB;

async function runLarge(path: string, options: object, requests: number, clusters: number): Promise<LargeReport> {
  const args = [path, JSON.stringify(options), '7', `${requests}`, `${clusters}`];
  const { code, stdout, stderr } = await run(process.execPath, ['--expose-gc', PROGRAM, ...args]);
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as LargeReport;
}

function assertBounded({ rss, heap, buffers }: LargeReport, cacheBytes: number): void {
  assert.ok(rss < cacheBytes + NODE_BYTES, `RSS has grown by ${rss} bytes`);
  assert.ok(heap < 8 * MiB, `the heap has grown by ${heap} bytes`);
  // The image is opened a second time, and the memory of the first may not have been collected.
  assert.ok(buffers < 2 * cacheBytes + 8 * MiB, `buffers have grown by ${buffers} bytes`);
}

for (const cacheBytes of [64 * KiB, MiB, 32 * MiB]) {
  const options = { 'l2-cache-size': cacheBytes, 'refcount-cache-size': 256 * KiB };
  const title = `random requests with an L2 cache of ${cacheBytes / KiB} KiB`;

  test(`${title}: a disk of 16 TiB`, needs('qemu-img'), async (t) => {
    const path = join(scratch(t), 'image.qcow2');
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, `${16 * 1024 * GiB}`);
    const report = await runLarge(path, options, 1600, (16 * 1024 * GiB) / (64 * KiB));
    assertBounded(report, cacheBytes);
    assert.ok(report.misses > 500, 'tables are loaded');
    await peer('qemu-img', 'check', '-q', '-f', 'qcow2', path);
  });

  test(`${title}: tables of a million clusters`, needs('qemu-img'), async (t) => {
    const path = join(scratch(t), 'image.qcow2');
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', path, `${64 * GiB}`);
    const report = await runLarge(path, options, 16_000, 2 ** 20);
    assertBounded(report, cacheBytes);
    // All tables have 8 MiB: with room for them, none is loaded twice.
    if (cacheBytes > 8 * MiB) assert.equal(report.evictions, 0);
    else assert.ok(report.evictions > 1000);
    await peer('qemu-img', 'check', '-q', '-f', 'qcow2', path);
  });
}
