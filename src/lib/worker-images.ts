/** Functions on images as a whole, inside an IOThread. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { checkImage, createImage, withSnapshots } from '../block/control.ts';
import type { CheckResult, SnapshotControl, SnapshotInfo } from '../block/driver.ts';
import type { ImageFiles, NodeOptions } from '../block/graph.ts';
import { ofImage } from './image-head.ts';
import type { CheckImageMessage, CreateMessage, SnapshotMessage, SnapshotReply } from './messages.ts';
import type { BlockdevOptions } from './options.ts';
import { probe } from './probe.ts';
import { NO_REFERENCES, resolveReferences } from './references.ts';

export async function makeImage(context: AioContext, message: CreateMessage): Promise<void> {
  const { format, file, dataFile, options } = message;
  await createImage(context, format, filesOf(file, dataFile), options);
}

/** Checks an image that is not open. Its backing file is not looked at. */
export async function checkFile(context: AioContext, message: CheckImageMessage): Promise<CheckResult> {
  const { name, probed, fix } = message;
  try {
    const options = probed ? await probe(message.options, name) : message.options;
    const policy = probed ? NO_REFERENCES : message.policy;
    const alone = options.driver === 'qcow2' ? { ...options, backing: null } : options;
    const resolved = await resolveReferences(alone, policy);
    const { file, 'data-file': dataFile } = resolved as unknown as Readonly<Record<string, BlockdevOptions>>;
    if (!file) throw new BlockError(Errno.ENOTSUP, `Could not check '${name}': its format does not support checks`);
    return await checkImage(context, resolved.driver, filesOf(file, dataFile), fix);
  } catch (error) {
    throw ofImage(error, name);
  }
}

function filesOf(file: BlockdevOptions, dataFile: BlockdevOptions | undefined): ImageFiles {
  const node = (options: BlockdevOptions): NodeOptions => options as unknown as NodeOptions;
  return { file: node(file), ...(dataFile ? { 'data-file': node(dataFile) } : {}) };
}

export function snapshots(blk: BlockBackend, { action, which }: SnapshotMessage): Promise<SnapshotReply> {
  return withSnapshots(blk, async (control) => {
    const about = await act(control, action, which);
    return { snapshots: about, size: blk.length };
  });
}

async function act(
  control: SnapshotControl,
  action: SnapshotMessage['action'],
  which: string,
): Promise<readonly SnapshotInfo[]> {
  if (action === 'create') return [await control.create(which)];
  if (action === 'delete') return [await control.delete(which)];
  if (action === 'apply') await control.apply(which);
  return control.list();
}
