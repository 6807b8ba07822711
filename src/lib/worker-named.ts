/** What a daemon asks of an IOThread about nodes by name. Loaded with the first of it: most threads are never asked. */
import type { SetupThread } from '../aio/iothread-worker.ts';
import type { NodeJobMethods } from './node-job-messages.ts';
import type { NodeMethods } from './node-messages.ts';
import type { TransactionMethods } from './transaction-messages.ts';
import type { WorkerDisks } from './worker-disks.ts';
import type { WorkerNodeJobs } from './worker-node-jobs.ts';
import type { WorkerNodes } from './worker-nodes.ts';

type Methods = NodeMethods & NodeJobMethods & TransactionMethods;

type Handlers = { readonly [M in keyof Methods]: (args: Parameters<Methods[M]>[0]) => Promise<ReturnType<Methods[M]>> };

/** Every method, so that one that is missing is seen. */
const METHODS: Readonly<Record<keyof Methods, true>> = {
  'node-add': true,
  'node-let-go': true,
  'node-del': true,
  'node-reopen': true,
  'node-list': true,
  'node-resize': true,
  'node-threshold': true,
  'node-disk': true,
  'node-snapshot-delete': true,
  'node-amend': true,
  'node-job-stream': true,
  'node-job-commit': true,
  'node-job-mirror': true,
  'node-job-create': true,
  'node-job-verb': true,
  'node-job-speed': true,
  'node-job-change': true,
  'node-job-amend': true,
  'node-set-active': true,
  'node-jobs': true,
  transaction: true,
  'transaction-begin': true,
  'transaction-take': true,
  'transaction-end': true,
  'job-group': true,
};

interface Loaded {
  readonly handlers: Handlers;
  readonly nodes: WorkerNodes;
  readonly jobs: WorkerNodeJobs;
}

export class NamedNodes {
  readonly handlers: Handlers;
  readonly #thread: SetupThread;
  readonly #disks: WorkerDisks;
  #loading: Promise<Loaded> | undefined;

  constructor(thread: SetupThread, disks: WorkerDisks) {
    this.#thread = thread;
    this.#disks = disks;
    const names = Object.keys(METHODS) as (keyof Methods)[];
    this.handlers = Object.fromEntries(
      names.map((method) => [method, (args: never) => this.#call(method, args)]),
    ) as unknown as Handlers;
  }

  async #call(method: keyof Methods, args: never): Promise<unknown> {
    this.#loading ??= this.#load();
    return (await this.#loading).handlers[method](args);
  }

  async #load(): Promise<Loaded> {
    const [{ WorkerNodeJobs }, { WorkerNodes }, { WorkerTransactions }] = await Promise.all([
      import('./worker-node-jobs.ts'),
      import('./worker-nodes.ts'),
      import('./worker-transactions.ts'),
    ]);
    const jobs = new WorkerNodeJobs(this.#thread);
    const nodes = new WorkerNodes(this.#thread, this.#disks, jobs.control);
    const transactions = new WorkerTransactions(this.#thread, jobs);
    const handlers = {
      ...nodes.handlers,
      ...jobs.handlers,
      ...transactions.handlers,
    };
    return { handlers, nodes, jobs };
  }

  async stopJobs(): Promise<void> {
    await (await this.#loading)?.jobs.stop();
  }

  /** Nothing uses the nodes any more. */
  async stop(): Promise<void> {
    await (await this.#loading)?.nodes.stop();
  }
}
