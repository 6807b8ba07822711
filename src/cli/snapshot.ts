/** `blockplane snapshot`. */
import { withDisk } from '../lib/images.ts';
import { inspect } from '../lib/inspect.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { formatOption, httpOption, oneOf, toChange } from './image-args.ts';
import { UsageError } from './report.ts';
import { snapshotJson, snapshotTable } from './snapshot-list.ts';
import type { RawSnapshotOptions } from './verbs.ts';

export async function snapshot(path: string, raw: RawSnapshotOptions): Promise<void> {
  const given = (['create', 'apply', 'delete'] as const).filter((action) => raw[action] !== undefined);
  if (given.length + (raw.list ? 1 : 0) > 1) throw new UsageError('-l, -c, -a and -d: give one of them');
  const output = oneOf(raw.output, ['human', 'json'] as const, '--output');
  const [action] = given;
  if (action === undefined) return list(path, raw, output === 'json');
  const which = raw[action]!;
  if (which === '') throw new UsageError(`--${action}: the name is empty`);
  await withLocalEngine((engine) =>
    withDisk(engine, toChange(path, raw), (disk) => engine.call('snapshots', { disk, action, which })),
  );
}

async function list(path: string, raw: RawSnapshotOptions, json: boolean): Promise<void> {
  const { qcow2 } = await inspect(path, { format: formatOption(raw.format), http: httpOption(raw.httpOpts) });
  const snapshots = qcow2?.snapshots ?? [];
  if (json) process.stdout.write(`${JSON.stringify(snapshots.map(snapshotJson), null, 4)}\n`);
  else if (snapshots.length > 0) process.stdout.write(snapshotTable(snapshots));
}
