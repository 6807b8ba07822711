/** Actions on nodes: one by itself, or several that happen together or not at all. */
import { everyOne } from '../base/every-step.ts';
import type { IOThread } from '../lib/iothread.ts';
import { type BackupStep, nodeNamesOf, type Step } from '../lib/transaction-messages.ts';
import { QmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Bitmaps, KnownBitmaps } from './bitmaps.ts';
import { openImageFile } from './image-files.ts';
import type { JobGroups } from './job-groups.ts';
import { errorPolicy, type Jobs } from './jobs.ts';
import type { Nodes } from './nodes.ts';

export type Action = Qapi<'TransactionAction'>;
type BitmapAction = Extract<Action, { type: `block-dirty-${string}` }>;
type Backup = Qapi<'BlockdevBackup'>;
type DriveBackup = Qapi<'DriveBackup'>;
type SnapshotSync = Qapi<'BlockdevSnapshotSync'>;

const ACTIONS_MAX = 1024;

/** An action as its thread takes it. */
interface Planned {
  readonly thread: IOThread | undefined;
  readonly step: Step;
  /** Takes back what was done to prepare it. */
  readonly undo?: () => Promise<unknown>;
  /** A node that was opened for it, and is held until the end. */
  readonly held?: string;
}

export class Transactions {
  readonly #nodes: Nodes;
  readonly #bitmaps: Bitmaps;
  readonly #jobs: Jobs;
  readonly #groups: JobGroups;
  #keys = 0;

  constructor(nodes: Nodes, bitmaps: Bitmaps, jobs: Jobs, groups: JobGroups) {
    this.#nodes = nodes;
    this.#bitmaps = bitmaps;
    this.#jobs = jobs;
    this.#groups = groups;
  }

  /** All of `actions`, or none. `grouped`: their jobs end well together or not at all. */
  async run(actions: readonly Action[], grouped = false): Promise<void> {
    if (actions.length > ACTIONS_MAX) throw new QmpError(`A transaction has at most ${ACTIONS_MAX} actions`);
    const planned: Planned[] = [];
    try {
      const known = await this.#bitmaps.known(actions.filter(isOfBitmap).map(({ data }) => data.node));
      for (const action of actions) planned.push(await this.#plan(action, planned, known));
      await this.#carryOut(partsOf(planned, this.#nodes.home), grouped);
    } catch (error) {
      for (const { undo } of planned.reverse()) await undo?.();
      throw error;
    } finally {
      for (const { held } of planned) if (held !== undefined) await this.#nodes.letGo(held);
    }
  }

  async #carryOut(parts: readonly Part[], grouped: boolean): Promise<void> {
    const threads = [...new Set(parts.map(({ thread }) => thread))];
    const [thread] = threads;
    if (threads.length > 1) await this.#across(threads, parts, grouped);
    else await thread?.call('transaction', { steps: parts.flatMap(({ steps }) => steps), grouped });
  }

  /** In several threads: all nodes are drained before the first step, and rest until after the last. */
  async #across(threads: readonly IOThread[], parts: readonly Part[], grouped: boolean): Promise<void> {
    const key = ++this.#keys;
    const stepsIn = (thread: IOThread): Step[] => parts.flatMap((part) => (part.thread === thread ? part.steps : []));
    const withJobs = threads.filter((thread) => stepsIn(thread).some(({ step }) => step === 'backup'));
    const begun: IOThread[] = [];
    let well = false;
    try {
      const begin = async (thread: IOThread): Promise<void> => {
        const group = grouped && withJobs.includes(thread);
        await thread.call('transaction-begin', { key, nodes: nodeNamesOf(stepsIn(thread)), grouped: group });
        begun.push(thread);
      };
      await everyOne(threads.map(begin));
      for (const { thread, steps } of parts) await thread.call('transaction-take', { key, steps });
      well = true;
      if (grouped) this.#groups.add(key, withJobs);
    } finally {
      await everyOne(begun.map((thread) => thread.call('transaction-end', { key, well })));
    }
  }

  #plan(action: Action, before: readonly Planned[], known: KnownBitmaps): Planned | Promise<Planned> {
    switch (action.type) {
      case 'abort':
        return { thread: undefined, step: { step: 'abort' } };
      case 'blockdev-snapshot':
        return this.#snapshot(action.data.node, action.data.overlay);
      case 'blockdev-snapshot-sync':
        return this.#snapshotSync(action.data);
      case 'blockdev-snapshot-internal-sync':
        return this.#internalSnapshot(action.data);
      case 'blockdev-backup':
        return this.#backup(action.data);
      case 'drive-backup':
        return this.#driveBackup(action.data);
      default:
        return this.#bitmap(action, before, known);
    }
  }

  async #bitmap(action: BitmapAction, before: readonly Planned[], known: KnownBitmaps) {
    const { node } = action.data;
    const thread = this.#nodes.lookup(undefined, node);
    // One that an earlier action makes is not there yet.
    const made = (name: string): boolean =>
      before.some(({ step }) => step.step === 'bitmap-add' && step.node === node && step.name === name);
    if (action.type === 'block-dirty-bitmap-add') {
      const { name, granularity, persistent = false, disabled = false } = action.data;
      await this.#bitmaps.assertNew(action.data, known);
      if (made(name)) throw new QmpError(`Bitmap already exists: ${name}`);
      return { thread, step: { step: 'bitmap-add', node, name, granularity, persistent, disabled } } as const;
    }
    if (action.type === 'block-dirty-bitmap-merge') {
      const { target: name, bitmaps: sources } = action.data;
      if (!made(name)) await this.#bitmaps.find(node, name, known);
      await this.#bitmaps.assertSources(action.data, made, known);
      return { thread, step: { step: 'bitmap-merge', node, name, sources } } as const;
    }
    const { name } = action.data;
    if (!made(name)) await this.#bitmaps.find(node, name, known);
    const verb = action.type.slice('block-dirty-bitmap-'.length) as 'remove' | 'clear' | 'enable' | 'disable';
    return { thread, step: { step: `bitmap-${verb}`, node, name } } as const;
  }

  async #snapshot(node: string, overlay: string): Promise<Planned> {
    return { thread: await this.#nodes.together(node, overlay), step: { step: 'snapshot', node, overlay } };
  }

  /** Makes the overlay first, unless it is there already. */
  async #snapshotSync(args: SnapshotSync): Promise<Planned> {
    const { device, 'node-name': name, 'snapshot-file': path, 'snapshot-node-name': overlay } = args;
    const node = name ?? device ?? '';
    this.#nodes.lookup(name, device);
    if (name !== undefined && overlay === undefined) throw new QmpError('New overlay node-name missing');
    if (overlay !== undefined && this.#nodes.find(overlay)) throw new QmpError('New overlay node-name already in use');
    const file = { path, format: args.format ?? 'qcow2', mode: args.mode, nodeName: overlay, withoutBacking: true };
    const held = await openImageFile(this.#nodes, file, node, 'itself');
    return { ...(await this.#snapshot(node, held)), held };
  }

  async #internalSnapshot({ device: node, name }: Qapi<'BlockdevSnapshotInternal'>): Promise<Planned> {
    const thread = this.#nodes.lookup(undefined, node);
    if (name === '') throw new QmpError('Name is empty');
    const info = (await this.#nodes.list()).find((one) => one.name === node);
    if (info?.snapshots.some((snapshot) => snapshot.name === name)) {
      throw new QmpError(`Snapshot with name '${name}' already exists on device '${node}'`);
    }
    return { thread, step: { step: 'internal-snapshot', node, name } };
  }

  async #backup(args: Backup): Promise<Planned> {
    const thread = await this.#nodes.together(args.device, args.target);
    const step = backupStep(args);
    this.#nodes.checkedName(step.filterName, 'Could not create node: ');
    const { message, undo } = this.#jobs.reserve(thread, args);
    return { thread, step: { ...message, ...step }, undo };
  }

  async #driveBackup({ target: path, format, mode, ...args }: DriveBackup): Promise<Planned> {
    const { device, sync } = args;
    const thread = this.#nodes.lookup(undefined, device);
    const step = backupStep({ ...args, target: '' });
    this.#nodes.checkedName(step.filterName, 'Could not create node: ');
    const { message, undo } = this.#jobs.reserve(thread, args);
    try {
      const file = { path, format, mode, unmap: true, detectZeroes: 'unmap' } as const;
      const below = sync === 'none' ? 'itself' : sync === 'top' ? 'its-backing' : 'nothing';
      const target = await openImageFile(this.#nodes, file, device, below);
      return { thread, step: { ...message, ...step, target }, undo, held: target };
    } catch (error) {
      await undo();
      throw error;
    }
  }
}

/** Steps that follow each other in one thread. */
interface Part {
  readonly thread: IOThread;
  readonly steps: Step[];
}

/** `planned` in its order; what is of no thread goes along with what is before it. */
function partsOf(planned: readonly Planned[], home: IOThread): Part[] {
  const parts: Part[] = [];
  for (const { thread, step } of planned) {
    const last = parts.at(-1);
    if (last && (thread ?? last.thread) === last.thread) last.steps.push(step);
    else parts.push({ thread: thread ?? home, steps: [step] });
  }
  return parts;
}

function isOfBitmap(action: Action): action is BitmapAction {
  return action.type.startsWith('block-dirty-bitmap-');
}

function backupStep(args: Backup): Omit<BackupStep, 'id' | 'speed' | 'autoFinalize' | 'autoDismiss'> {
  const { bitmap, compress = false, 'filter-node-name': filterName, 'x-perf': perf = {} } = args;
  const mode = args['bitmap-mode'];
  const incremental = args.sync === 'incremental';
  if (incremental && mode !== undefined && mode !== 'on-success') {
    throw new QmpError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
  }
  if ((incremental || args.sync === 'bitmap') && bitmap === undefined) {
    throw new QmpError(`must provide a valid bitmap name for '${args.sync}' sync mode`);
  }
  if (args.sync === 'bitmap' && mode === undefined) {
    throw new QmpError('Bitmap sync mode must be given when providing a bitmap');
  }
  return {
    step: 'backup',
    node: args.device,
    target: args.target,
    sync: incremental ? 'bitmap' : (args.sync as 'full' | 'top' | 'none' | 'bitmap'),
    bitmap,
    bitmapMode: incremental ? 'on-success' : mode,
    compress,
    filterName,
    maxWorkers: perf['max-workers'],
    maxChunk: perf['max-chunk'],
    onSourceError: errorPolicy(args['on-source-error']),
    onTargetError: errorPolicy(args['on-target-error']),
  };
}
