/** `qemu-img snapshot`. */
import { BlockError, Errno, errnoText } from '../../base/errors.ts';
import { changeSnapshots, listSnapshots } from '../../img/snapshot.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { failureText } from './messages.ts';
import { snapshotTable } from './snapshot-table.ts';
import { imageSpec, warnProbedRaw } from './targets.ts';
import { Failure, Misuse, Option, type Verb } from './verb.ts';

const LIST = { short: 'l' } as const;
const APPLY = { short: 'a', argument: 'required' } as const;
const CREATE = { short: 'c', argument: 'required' } as const;
const DELETE = { short: 'd', argument: 'required' } as const;

const ACTIONS = [
  { def: APPLY, action: 'apply' },
  { def: CREATE, action: 'create' },
  { def: DELETE, action: 'delete' },
] as const;

export const snapshot: Verb = {
  options: [LIST, APPLY, CREATE, DELETE, Option.object, Option.imageOpts, Option.forceShare, Option.quiet],
  async run(line, terminal) {
    const actions = [LIST, APPLY, CREATE, DELETE];
    const given = line.options.filter(({ def }) => actions.some((one) => one === def)).length;
    if (given > 1) throw new Misuse("Cannot mix '-l', '-a', '-c', '-d'");
    const spec = imageSpec(line, line.image);
    const how = { forceShare: line.has(Option.forceShare), objects: line.objects };
    const asked = ACTIONS.find(({ def }) => line.has(def));
    if (asked === undefined) {
      const list = await withLocalContext((context) => listSnapshots(context, spec, how));
      if (line.has(LIST) && list.length > 0) terminal.out(`Snapshot list:\n${snapshotTable(list)}\n`);
      return 0;
    }
    const { action } = asked;
    const which = line.value(asked.def)!;
    const onProbedRaw = warnProbedRaw(terminal);
    await withLocalContext((context) =>
      changeSnapshots(context, spec, { ...how, action, which, onProbedRaw }).catch((error: unknown) => {
        if (!(error instanceof BlockError) || error.where.op === 'open') throw error;
        throw new Failure(`Could not ${action} snapshot '${which}': ${reason(action, error)}`);
      }),
    );
    return 0;
  },
};

function reason(action: 'apply' | 'create' | 'delete', error: BlockError): string {
  const { errno } = error;
  if (action === 'create') return `-${errno} (${errnoText(errno)})`;
  if (action === 'delete' && (errno === Errno.ENOENT || errno === Errno.ENOTSUP)) return 'snapshot not found';
  if (errno === Errno.ENOTSUP) return 'Block driver does not support snapshots';
  return errno === Errno.ENOENT ? `Failed to load snapshot: ${errnoText(errno)}` : failureText(error);
}
