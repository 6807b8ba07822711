import type { NodeMirrorMessage } from '../../lib/node-job-messages.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Arguments } from '../../qmp/schema/schema.ts';
import type { Daemon } from '../daemon.ts';
import { openImageFile } from '../image-files.ts';
import { errorPolicy, type JobSettings } from '../jobs.ts';
import type { Handlers } from './table.ts';

const GRANULARITY_MIN = 512;
const GRANULARITY_MAX = 64 * 1024 * 1024;

type Mirror = Arguments<'blockdev-mirror'>;
type Settings = Omit<NodeMirrorMessage, keyof JobSettings | 'id' | 'speed' | 'autoFinalize' | 'autoDismiss' | 'target'>;

export function mirrorCommands({ jobs, nodes }: Daemon): Handlers {
  return {
    'blockdev-mirror': async (args) => {
      const thread = await nodes.together(args.device, args.target);
      const settings = { ...settingsOf(args), filterName: nodes.checkedName(args['filter-node-name']) };
      await jobs.start(thread, args, (message) =>
        thread.call('node-job-mirror', { ...message, ...settings, target: args.target }),
      );
    },
    'drive-mirror': async (args) => {
      const { device, target: path, mode, format, unmap = true, sync, 'node-name': nodeName } = args;
      const thread = nodes.lookup(undefined, device);
      if (args.replaces !== undefined && nodeName === undefined) {
        throw new QmpError('a node-name must be provided when replacing a named node of the graph');
      }
      const settings = settingsOf(args);
      const below = sync === 'none' ? 'itself' : sync === 'top' ? 'its-backing' : 'nothing';
      const { message, undo } = jobs.reserve(thread, args);
      try {
        const target = await openImageFile(nodes, { path, mode, format, unmap, nodeName }, device, below);
        try {
          await thread.call('node-job-mirror', { ...message, ...settings, target, unmap });
        } finally {
          // From here on it is the job's.
          await nodes.letGo(target);
        }
      } catch (error) {
        await undo();
        throw error;
      }
    },
  };
}

function settingsOf(args: Omit<Mirror, 'target'>): Settings {
  const { device, replaces, sync, granularity, 'buf-size': bufSize } = args;
  if (sync === 'incremental' || sync === 'bitmap') throw new QmpError(`Sync mode '${sync}' not supported`);
  if (granularity) assertGranularity(granularity);
  if (bufSize !== undefined && bufSize < 0) throw new QmpError("Invalid parameter 'buf-size'");
  return {
    node: device,
    sync,
    replaces,
    granularity: granularity === 0 ? undefined : granularity,
    bufSize,
    copyMode: args['copy-mode'] ?? 'background',
    onSourceError: errorPolicy(args['on-source-error']),
    onTargetError: errorPolicy(args['on-target-error']),
  };
}

function assertGranularity(granularity: number): void {
  if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
    throw new QmpError("Parameter 'granularity' expects a value in range [512B, 64MB]");
  }
  if (!Number.isInteger(Math.log2(granularity))) throw new QmpError("Parameter 'granularity' expects a power of 2");
}
