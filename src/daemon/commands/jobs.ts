import { driverTable } from '../../block/registry.ts';
import { withObjects } from '../../lib/objects/resolve.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Daemon } from '../daemon.ts';
import { errorPolicy } from '../jobs.ts';
import type { Handlers } from './table.ts';

export function jobCommands(daemon: Daemon): Handlers {
  const { jobs } = daemon;
  return {
    'query-jobs': () => jobs.list(),
    'query-block-jobs': () => jobs.listBlockJobs(),
    'job-pause': ({ id }) => jobs.do(id, 'pause', 'job'),
    'job-resume': ({ id }) => jobs.do(id, 'resume', 'job'),
    'job-cancel': ({ id }) => jobs.do(id, 'cancel', 'job', true),
    'job-complete': ({ id }) => jobs.do(id, 'complete', 'job'),
    'job-dismiss': ({ id }) => jobs.do(id, 'dismiss', 'job'),
    'job-finalize': ({ id }) => jobs.do(id, 'finalize', 'job'),
    'block-job-set-speed': ({ device, speed }) => jobs.setSpeed(device, speed),
    'block-job-cancel': ({ device, force = false }) => jobs.do(device, 'cancel', 'block-job', force),
    'block-job-pause': ({ device }) => jobs.do(device, 'pause', 'block-job'),
    'block-job-resume': ({ device }) => jobs.do(device, 'resume', 'block-job'),
    'block-job-complete': ({ device }) => jobs.do(device, 'complete', 'block-job'),
    'block-job-dismiss': ({ id }) => jobs.do(id, 'dismiss', 'block-job'),
    'block-job-finalize': ({ id }) => jobs.do(id, 'finalize', 'block-job'),
    'block-job-change': ({ id, ...change }) => jobs.change(id, change),
    ...copyingCommands(daemon),
    ...formatCommands(daemon),
  };
}

/** Members of groups by their whole names: `encrypt.format`. */
function ungrouped(options: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const entries = Object.entries(options).flatMap(([name, value]) =>
    typeof value === 'object' && value !== null
      ? Object.entries(value).map(([member, own]) => [`${name}.${member}`, own] as const)
      : [[name, value] as const],
  );
  return Object.fromEntries(entries);
}

function copyingCommands({ jobs, nodes }: Daemon): Handlers {
  return {
    'block-stream': async (args) => {
      const { device: node, base, bottom, 'base-node': baseNode, 'backing-file': backingFile } = args;
      const thread = nodes.lookup(undefined, node);
      const [first, second] = (['base', 'base-node', 'bottom'] as const).filter((name) => args[name] !== undefined);
      if (second !== undefined) throw new QmpError(`'${first}' and '${second}' cannot be specified at the same time`);
      if (backingFile !== undefined && first === undefined) {
        throw new QmpError('backing file specified, but streaming the entire chain');
      }
      if (baseNode !== undefined) nodes.lookup(baseNode);
      if (bottom !== undefined) nodes.lookup(bottom);
      const filterName = nodes.checkedName(args['filter-node-name'], 'Could not create node: ');
      const onError = errorPolicy(args['on-error']);
      const layer = { base: base ?? baseNode, bottom };
      await jobs.start(thread, args, (settings) =>
        thread.call('node-job-stream', { ...settings, ...layer, node, backingFile, filterName, onError }),
      );
    },
    'block-commit': async (args) => {
      const { device: node, base, top, 'base-node': baseNode, 'top-node': topNode, 'backing-file': backingFile } = args;
      const thread = nodes.lookup(undefined, node);
      if (base !== undefined && baseNode !== undefined)
        throw new QmpError("'base-node' and 'base' are mutually exclusive");
      if (top !== undefined && topNode !== undefined) throw new QmpError("'top-node' and 'top' are mutually exclusive");
      if (topNode !== undefined) nodes.lookup(topNode);
      if (baseNode !== undefined) nodes.lookup(baseNode);
      const layers = {
        base: base ?? baseNode,
        top: top ?? topNode,
        backingFile,
        filterName: nodes.checkedName(args['filter-node-name']),
        onError: errorPolicy(args['on-error']),
      };
      await jobs.start(thread, args, (settings) => thread.call('node-job-commit', { ...settings, node, ...layers }));
    },
  };
}

/** Jobs that make an image, or change what it is. */
function formatCommands({ jobs, nodes, objects }: Daemon): Handlers {
  return {
    'x-blockdev-amend': async ({ 'job-id': id, 'node-name': node, options }) => {
      const { driver, version, ...rest } = options as Readonly<Record<string, unknown>>;
      const thread = nodes.lookup(node);
      const there = (await nodes.list()).find((one) => one.name === node)?.driver;
      if (there !== driver) throw new QmpError("x-blockdev-amend doesn't support changing the block driver");
      if (!driverTable().get(there ?? '')?.amendOptions) throw new QmpError('Driver does not support x-blockdev-amend');
      const changes = { ...rest, ...(version === undefined ? {} : { compat: version }) };
      await jobs.start(
        thread,
        { 'job-id': id },
        (settings) => thread.call('node-job-amend', { ...settings, node, changes }),
        true,
      );
    },
    'blockdev-create': async ({ 'job-id': id, options }) => {
      const { driver, file, 'data-file': dataFile, version, ...given } = options as Readonly<Record<string, unknown>>;
      const rest = withObjects(ungrouped(given), objects);
      for (const [name, below] of Object.entries({ file, 'data-file': dataFile })) {
        if (typeof below === 'object') throw new QmpError(`Parameter 'options.${name}' expects the name of a node`);
      }
      const thread = typeof file === 'string' ? nodes.lookup(undefined, file) : nodes.home;
      const dataNode = typeof dataFile === 'string' ? { 'data-file': dataFile } : {};
      const message = {
        driver: String(driver),
        nodes: typeof file === 'string' ? { file, ...dataNode } : {},
        options: { ...rest, ...(version === undefined ? {} : { compat: version }) },
      };
      await jobs.start(
        thread,
        { 'job-id': id },
        (settings) => thread.call('node-job-create', { ...settings, ...message }),
        true,
      );
    },
  };
}
