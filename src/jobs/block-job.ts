/** What jobs on nodes have in common: the BlockBackends they work through, whom they keep away, and what becomes of
 *  errors. */
import type { AioContext } from '../aio/context.ts';
import { type BlockError, Errno } from '../base/errors.ts';
import type { Bytes, Nanoseconds } from '../base/units.ts';
import { type BackendUser, BlockBackend, type BlockBackendOptions } from '../block/backend.ts';
import { BlockChild } from '../block/child.ts';
import { claim } from '../block/claims.ts';
import { PERM_ALL, Perm } from '../block/driver.ts';
import { releaseNode } from '../block/graph.ts';
import type { BlockNode, NodeParent } from '../block/node.ts';
import { usesDisk } from '../block/permissions.ts';
import { replaceNode } from '../block/replace-node.ts';
import { GuestPace } from './guest-pace.ts';
import { Job, type JobOptions } from './job.ts';

/**
 * What an error of an image leads to. `report`: the job fails. `ignore`: what failed is tried again, a little later.
 * `stop`: the job is paused, and tries again when it is resumed. `enospc`: `stop` where there was no space, else
 * `report`.
 */
export type ErrorPolicy = 'report' | 'ignore' | 'stop' | 'enospc';

export type ErrorAction = 'report' | 'ignore' | 'stop';

export interface JobErrorEvent {
  readonly operation: 'read' | 'write';
  readonly action: ErrorAction;
  readonly error: BlockError;
}

export interface BlockJobOptions extends JobOptions {
  /** Told of every error of an image that it works on. */
  readonly onError?: ((job: Job, event: JobErrorEvent) => void) | undefined;
}

/** Guests that have asked for something in this time are there. */
const GUEST_NS: Nanoseconds = 100_000_000;
/** While guests are there a job works for so long, or on pieces that take longer, and then rests: 50 ms at most, so
 *  that it comes to its end whatever they do. */
const WORK_NS: Nanoseconds = 4e6;
const REST_NS_MAX: Nanoseconds = 50_000_000;

/** As long as a look at what there is to copy keeps others from their turn. */
const LOOK_NS: Nanoseconds = 200_000;

/** Before what failed is tried again. */
const RETRY_NS = 100_000_000;

/** Has the job rest while one of its BlockBackends is drained, however often it is told so. */
class Rest implements BackendUser {
  readonly #hold: () => void;
  readonly #release: () => void;
  #resting = false;

  constructor(hold: () => void, release: () => void) {
    this.#hold = hold;
    this.#release = release;
  }

  onDrainBegin(): void {
    if (!this.#resting) this.#hold();
    this.#resting = true;
  }

  onDrainEnd(): void {
    if (this.#resting) this.#release();
    this.#resting = false;
  }
}

export abstract class BlockJob extends Job {
  readonly #onError: BlockJobOptions['onError'];
  readonly #blks: BlockBackend[] = [];
  readonly #claims: Disposable[] = [];
  /** On nodes that are not to be read past its filter. */
  readonly #barriers: BlockBackend[] = [];
  #retry = false;
  #guests: BlockNode | undefined;
  #guestRequests = 0;
  #guestsUntil: Nanoseconds = 0;
  readonly #pace = new GuestPace();
  /** When it went on after its last rest, and the guests' requests up to then. */
  #begun: Nanoseconds = 0;
  #begunRequests = 0;
  /** When others last had their turn in a long look. */
  #looking: Nanoseconds = 0;
  #ioStatus: 'ok' | 'failed' | 'nospace' = 'ok';

  constructor(context: AioContext, options: BlockJobOptions) {
    super(context, options);
    this.#onError = options.onError;
  }

  /** What an error has made it stop for; `ok` again once it is resumed. */
  get ioStatus(): 'ok' | 'failed' | 'nospace' {
    return this.#ioStatus;
  }

  /** Nobody else changes the graph around these until its end. EBUSY names who does. */
  protected claim(nodes: Iterable<BlockNode>): void {
    this.#claims.push(claim(nodes, `job '${this.id}'`));
  }

  /** A BlockBackend of its own on `node`, until its end. It rests while that is drained. */
  protected async use(node: BlockNode, options: Omit<BlockBackendOptions, 'name'>): Promise<BlockBackend> {
    const blk = new BlockBackend(this.context, { ...options, name: `job '${this.id}'` });
    await blk.insert(node);
    this.own(blk);
    this.restWith(blk);
    return blk;
  }

  /** `blk` goes with the job. */
  protected own(blk: BlockBackend): void {
    this.#blks.push(blk);
  }

  /** It rests while `blk` is drained. Answers what ends that. */
  protected restWith(blk: BlockBackend, more: Partial<BackendUser> = {}): () => void {
    const rest = Object.assign(
      new Rest(
        () => this.hold(),
        () => this.release(),
      ),
      more,
    );
    blk.users.add(rest);
    if (blk.quiesce > 0) rest.onDrainBegin();
    return () => {
      blk.users.delete(rest);
      rest.onDrainEnd();
    };
  }

  /** Has those who use `node` use `filter` from now on, until it is {@link takeAway taken away}: all but this job and
   *  `own`, which works for it. */
  protected async putOver(node: BlockNode, filter: BlockNode, own?: BlockBackend): Promise<void> {
    filter.implicit = true;
    this.claim([filter]);
    const isOwn = (parent: NodeParent): boolean => parent === own || this.#blks.some((blk) => blk === parent);
    await replaceNode(node, filter, (parent) => usesDisk(parent) && !isOwn(parent));
    // It is in use, whoever else uses it.
    await this.use(filter, { readOnly: true, perm: Perm.CONSISTENT_READ, shared: PERM_ALL });
  }

  /** Nobody begins to read these by themselves until the filter over them is taken away: what a layer shows where one
   *  above it holds something changes while the job works. EPERM where somebody does. */
  protected async keepFromReaders(nodes: readonly BlockNode[]): Promise<void> {
    const shared = PERM_ALL & ~(Perm.CONSISTENT_READ | Perm.RESIZE);
    for (const node of nodes) this.#barriers.push(await this.use(node, { readOnly: true, perm: 0, shared }));
  }

  /** The inverse of {@link putOver}; `moves`: which of the filter's users go along. Default: all. */
  protected async takeAway(filter: BlockNode, node: BlockNode, moves?: typeof usesDisk): Promise<void> {
    for (const blk of this.#barriers.splice(0)) await blk.setPermissions(0, PERM_ALL);
    await replaceNode(filter, node, moves);
    await releaseNode(filter);
  }

  /** Lets go of all that it works on. Rejects with the first failure, after all. */
  protected async letGo(): Promise<void> {
    const failures: unknown[] = [];
    for (const blk of this.#blks.splice(0)) await blk.remove().catch((error: unknown) => failures.push(error));
    for (const held of this.#claims.splice(0)) held[Symbol.dispose]();
    if (failures.length > 0) throw failures[0];
  }

  protected override async clean(): Promise<void> {
    await this.letGo();
  }

  /** It could not be made; what matters is why. */
  protected async undo(): Promise<void> {
    this.withdraw();
    await this.clean().catch(() => undefined);
  }

  /** An image has failed. True: go on, as far as {@link paced} lets it. */
  protected failed(policy: ErrorPolicy, operation: 'read' | 'write', error: BlockError): boolean {
    const noSpace = error.errno === Errno.ENOSPC;
    const stops = policy === 'stop' || (policy === 'enospc' && noSpace);
    const action = stops ? 'stop' : policy === 'ignore' ? 'ignore' : 'report';
    if (action === 'ignore') this.#retry = true;
    if (action === 'stop') {
      this.#ioStatus = noSpace ? 'nospace' : 'failed';
      this.pauseItself();
    }
    this.#onError?.(this, { operation, action, error });
    return action !== 'report';
  }

  protected override onResume(): void {
    this.#ioStatus = 'ok';
  }

  /** Those who use `node`, besides itself, are guests that it is fair to. */
  protected beFairTo(node: BlockNode): void {
    this.#guests = node;
    this.#guestRequests = this.#countRequests();
  }

  /** While it is true, few pieces at a time are enough. */
  protected get guestsAreThere(): boolean {
    return this.context.now() < this.#guestsUntil;
  }

  #countRequests(): number {
    let count = 0;
    const visit = (node: BlockNode): void => {
      for (const parent of node.parents) {
        if (parent instanceof BlockChild) visit(parent.parent);
        else if (parent instanceof BlockBackend && !this.#blks.includes(parent)) count += parent.stats.requests;
      }
    };
    if (this.#guests && !this.#guests.closed) visit(this.#guests);
    return count;
  }

  /** {@link pausePoint} between two extents of a long look at an image: where they are many, and known without waiting,
   *  others have their turn in between. */
  protected async lookPoint(): Promise<void> {
    if (this.context.now() - this.#looking > LOOK_NS) {
      await this.context.yield();
      this.#looking = this.context.now();
    }
    await this.pausePoint(0);
  }

  /** {@link pausePoint}, a little later where something has failed, or guests are there: then what was
   *  done is followed by a time that is theirs. */
  protected async paced(length: Bytes): Promise<void> {
    if (this.#retry) {
      this.#retry = false;
      await this.idle(RETRY_NS);
    }
    const now = this.context.now();
    const requests = this.#countRequests();
    if (requests !== this.#guestRequests) this.#guestsUntil = now + GUEST_NS;
    this.#guestRequests = requests;
    if (!this.guestsAreThere) this.#workFrom(now, requests);
    else if (now - this.#begun >= WORK_NS) await this.#restForGuests(now, requests);
    await this.pausePoint(length);
  }

  #workFrom(now: Nanoseconds, requests: number): void {
    this.#begun = now;
    this.#begunRequests = requests;
  }

  async #restForGuests(now: Nanoseconds, requests: number): Promise<void> {
    const worked = now - this.#begun;
    this.#pace.worked(worked, requests - this.#begunRequests);
    await this.idle(Math.min(worked * this.#pace.factor, REST_NS_MAX));
    const after = this.context.now();
    this.#workFrom(after, this.#countRequests());
    this.#pace.rested(after - now, this.#begunRequests - requests);
  }
}
