import { Gate } from '../aio/op.ts';
import type { Bytes, Offset } from '../base/units.ts';
import type { BlockBackend } from '../block/backend.ts';
import { plainFile, writtenBehind } from '../block/plain-file.ts';
import type { CopySource, CopyTuning } from '../jobs/block-copy.ts';
import { copyRange } from '../native/copy-range.ts';

/**
 * Has the system copy ranges from one file to another: file systems that can share the blocks. Undefined where the
 * disks are not plain files. What it cannot do is left to be read and written, which also says what is wrong.
 */
export function offloadOf(sources: readonly CopySource[], target: BlockBackend): CopyTuning['offload'] {
  const [first, ...more] = sources;
  const root = target.root!;
  const [from, to] = [plainFile(first!.blk.root!), plainFile(root)];
  if (more.length > 0 || from === undefined || to === undefined) return undefined;
  return async (at: Offset, length: Bytes): Promise<boolean> => {
    for (let done = 0; done < length; ) {
      const gate = new Gate<number>();
      const place = first!.from + at - first!.at + done;
      const [source, sink] = [from.impl.descriptor!, to.impl.descriptor!];
      if (!copyRange({ fd: source, at: place }, { fd: sink, at: at + done }, length - done, gate.open.bind(gate)))
        return false;
      const copied = await gate.promise;
      if (copied <= 0) return false;
      done += copied;
    }
    writtenBehind(root, at, length);
    return true;
  };
}
