/** Functions on images as a whole. */
import type { AioContext } from '../aio/context.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';
import { claimOf } from '../block/claims.ts';
import { checkImage, createImage, withSnapshots } from '../block/control.ts';
import { layerOf } from '../block/copy-up.ts';
import type { CheckResult, SnapshotControl, SnapshotInfo } from '../block/driver.ts';
import type { NodeOptions } from '../block/graph.ts';
import { ofImage } from './image-head.ts';
import type { CheckImageMessage, CreateMessage, SnapshotMessage, SnapshotReply } from './messages.ts';
import { needDrivers } from './needed-drivers.ts';
import type { BlockdevOptions } from './options.ts';
import { probe } from './probe.ts';

export async function makeImage(context: AioContext, message: CreateMessage): Promise<void> {
  const { format, file, dataFile, options } = message;
  await needDrivers([file, dataFile], format);
  await createImage(
    context,
    format,
    { file: node(file), ...(dataFile ? { 'data-file': node(dataFile) } : {}) },
    options,
  );
}

/** Checks an image that is not open. No other file is looked at. */
export async function checkFile(context: AioContext, message: CheckImageMessage): Promise<CheckResult> {
  const { name, probed, fix } = message;
  try {
    const options = probed ? await probe(context, message.options, name) : message.options;
    await needDrivers(options);
    const { file } = options as { readonly file?: BlockdevOptions };
    if (!file) throw new BlockError(Errno.ENOTSUP, `Could not check '${name}': it is not in a file`);
    return await checkImage(context, options.driver, { file: node(withSettings(file, options)) }, fix);
  } catch (error) {
    throw ofImage(error, name);
  }
}

/** What the file's node would inherit from the one that is not opened. */
function withSettings(file: BlockdevOptions, top: BlockdevOptions): BlockdevOptions {
  const { cache } = top;
  const shared = top['force-share'] ? { 'force-share': true, 'read-only': true } : {};
  return { ...(cache ? { cache } : {}), ...shared, ...file };
}

function node(options: BlockdevOptions): NodeOptions {
  return options as unknown as NodeOptions;
}

export function snapshots(blk: BlockBackend, { action, which }: SnapshotMessage): Promise<SnapshotReply> {
  return withSnapshots(blk, async (control) => {
    if (action !== 'list') assertRevertible(blk);
    const about = await act(control, action, which);
    return { snapshots: about, size: blk.length };
  });
}

/** EBUSY where somebody needs the disk to go on as it is. */
function assertRevertible(blk: BlockBackend): void {
  const who = blk.root ? claimOf(layerOf(blk.root)) : undefined;
  if (who !== undefined) {
    throw new BlockError(Errno.EBUSY, `Could not change the snapshots of '${blk.name}': it is in use by ${who}`);
  }
  for (const user of blk.users) {
    const why = user.cannotRevert?.();
    if (why !== undefined) throw new BlockError(Errno.EBUSY, `Could not change the snapshots of '${blk.name}': ${why}`);
  }
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
