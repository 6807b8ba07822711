/** For tests: commits in the chain of testing-stream.ts. */
import type { BlockBackend } from '../block/backend.ts';
import type { BlockNode } from '../block/node.ts';
import { nodeByName } from '../block/registry.ts';
import { ActiveCommitJob } from './active-commit.ts';
import { CommitJob } from './commit-job.ts';
import type { Job } from './job.ts';
import type { ChainFiles } from './testing-stream.ts';

/** What is committed: the middle layer into the base, or the active one into either. */
export type What = 'middle' | 'top' | 'top-to-middle';

export function baseNode(what: What): BlockNode {
  return nodeByName(what === 'top-to-middle' ? 'middle' : 'base');
}

export function commitOf(
  blk: BlockBackend,
  files: ChainFiles,
  what: What,
  more: object = {},
): Promise<CommitJob | ActiveCommitJob> {
  const options = { id: 'commit', autoDismiss: false, ...more };
  const root = blk.root!;
  if (what !== 'middle') return ActiveCommitJob.commit(root, baseNode(what), options);
  const base = { node: baseNode(what), name: files.base, format: 'raw' };
  return CommitJob.create(root, { base, top: nodeByName('middle'), ...options });
}

/** Completes an active commit as soon as it is ready. */
export const completeWhenReady = {
  onStatus: (job: Job): void => {
    if (job.status === 'ready') job.complete();
  },
};
