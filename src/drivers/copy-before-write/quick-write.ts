/**
 * A guest's write to one cluster that has to be kept, and that nobody is at: the cluster is read and written to the
 * target, and then comes the guest's write, without a coroutine. All else goes the way of {@link Snapshot.beforeWrite}.
 */
import { type AioOp, spawn } from '../../aio/op.ts';
import { BlockError, ioError } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Offset } from '../../base/units.ts';
import { type Child, type ChildRequest, type OpenContext, RequestFlags } from '../../block/driver.ts';
import type { Claim, Snapshot } from './snapshot.ts';

const Step = { READ: 0, KEEP: 1, WRITE: 2 } as const;

class QuickWrite {
  readonly #writes: QuickWrites;
  readonly request: ChildRequest;
  readonly iov: Iov;
  op: AioOp | null = null;
  /** The guest's, until its end. */
  data: Iov | null = null;
  at: Offset = 0;
  claim: Claim | null = null;
  step: number = Step.READ;

  constructor(writes: QuickWrites, context: OpenContext) {
    this.#writes = writes;
    this.request = context.request((error) => this.#writes.stepEnded(this, error));
    this.iov = this.request.iov;
  }
}

export class QuickWrites {
  readonly #context: OpenContext;
  readonly #file: Child;
  readonly #target: Child;
  readonly #snapshot: Snapshot;
  readonly #breaksSnapshot: boolean;
  /** As many as there were in flight at once. */
  readonly #free: QuickWrite[] = [];

  constructor(context: OpenContext, file: Child, target: Child, snapshot: Snapshot, breaksSnapshot: boolean) {
    this.#context = context;
    this.#file = file;
    this.#target = target;
    this.#snapshot = snapshot;
    this.#breaksSnapshot = breaksSnapshot;
  }

  /** See NodeIo.beginWrite. */
  begin(op: AioOp, iov: Iov, at: Offset): boolean {
    const claim = this.#snapshot.claimNow(at, iov.length);
    if (claim === undefined) return false;
    const write = this.#free.pop() ?? new QuickWrite(this, this.#context);
    write.op = op;
    write.data = iov;
    write.at = at;
    write.claim = claim;
    write.step = Step.READ;
    this.#snapshot.fill(write.iov, claim);
    write.request.read(this.#file, claim.range.at);
    return true;
  }

  /** @internal */
  stepEnded(write: QuickWrite, error: number): void {
    if (write.step === Step.WRITE) {
      this.#end(write, error, write.request.failure);
      return;
    }
    if (error !== 0) this.#notKept(write, error, write.request.failure);
    else if (write.step === Step.READ) this.#keep(write);
    else this.#write(write, true);
  }

  #keep(write: QuickWrite): void {
    const at = this.#snapshot.fillKept(write.iov, write.claim!);
    write.step = Step.KEEP;
    if (write.iov.length > 0) write.request.write(this.#target, at);
    else if (write.claim!.blank) this.#write(write, true);
    else spawn(this.#keepZeroes(write));
  }

  /** The target has something else there. */
  async #keepZeroes(write: QuickWrite): Promise<void> {
    const { at, end } = write.claim!.range;
    try {
      await this.#target.writeZeroes(at, end - at, RequestFlags.MAY_UNMAP);
    } catch (failure) {
      if (!(failure instanceof BlockError)) throw failure;
      this.#notKept(write, -failure.errno, failure);
      return;
    }
    this.#write(write, true);
  }

  #write(write: QuickWrite, kept: boolean): void {
    this.#snapshot.releaseNow(write.claim!, kept);
    write.step = Step.WRITE;
    write.iov.sliceOf(write.data!, 0, write.data!.length);
    write.request.write(this.#file, write.at);
  }

  #notKept(write: QuickWrite, error: number, failure: unknown): void {
    const { at, end } = write.claim!.range;
    const length = end - at;
    const what = write.step === Step.READ ? 'read' : 'write';
    const why =
      failure instanceof BlockError
        ? failure
        : ioError(error, `Could not ${what} ${length} bytes at ${at}`, { op: what, at, length });
    if (this.#breaksSnapshot) {
      this.#snapshot.break(why);
      this.#write(write, false);
      return;
    }
    this.#snapshot.releaseNow(write.claim!, false);
    this.#end(write, error, why);
  }

  #end(write: QuickWrite, error: number, failure: unknown): void {
    const { op, data } = write;
    write.op = null;
    write.data = null;
    write.claim = null;
    this.#free.push(write);
    op!.failure = error === 0 ? null : failure;
    op!.complete(error === 0 ? data!.length : error);
  }
}
