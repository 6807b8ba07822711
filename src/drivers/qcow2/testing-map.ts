/** For tests against QEMU: what `qemu-img map` says of an image, and what we say. */
import assert from 'node:assert/strict';
import { peer } from '../../../test/harness.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { BlockStatus } from '../../block/status.ts';

/** One extent as QEMU prints it. */
interface PeerExtent {
  readonly start: Offset;
  readonly length: Bytes;
  /** 0 is the top layer. */
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset?: Offset;
}

/** Fails where the two differ. We may know of holes in a file where QEMU does not look. */
export async function compareMap(path: string, blk: BlockBackend): Promise<void> {
  const json = await peer('qemu-img', 'map', '-f', 'qcow2', '--output=json', path);
  const status = new BlockStatus();
  let end = 0;
  for (const extent of JSON.parse(json) as PeerExtent[]) {
    assert.equal(extent.start, end);
    end += extent.length;
    for (let at = extent.start; at < end; at += status.length) {
      await blk.blockStatus(at, end - at, status);
      compareExtent(extent, at, status);
    }
  }
  assert.equal(end, blk.length);
}

function compareExtent(theirs: PeerExtent, at: Offset, ours: BlockStatus): void {
  const where = `${ours.length} bytes at ${at}, of ${JSON.stringify(theirs)}`;
  const hole = ours.zero && theirs.data && !theirs.zero;
  if (!hole) assert.deepEqual([ours.data, ours.zero], [theirs.data, theirs.zero], `data and zero of ${where}`);
  if (!theirs.present) return;
  assert.ok(ours.allocated, `presence of ${where}`);
  assert.equal(ours.depth, theirs.depth + 1, `depth of ${where}`);
  if (theirs.depth > 0 || !ours.data) return;
  const offset = ours.child === null ? undefined : ours.at;
  assert.equal(
    offset,
    theirs.offset === undefined ? undefined : theirs.offset + at - theirs.start,
    `offset of ${where}`,
  );
}
