/** The seam in a simulated world: drives one AioContext by events of the world's queue. */
import { assert } from '../../base/assert.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Memory } from '../../base/memory.ts';
import type { Nanoseconds } from '../../base/units.ts';
import type {
  AioBackend,
  AioFile,
  AioListener,
  AioSocket,
  ListenOptions,
  LoopHost,
  OpenFileOptions,
  SocketAddress,
} from '../backend.ts';
import type { AioOp } from '../op.ts';
import { dispatchRest, type OpOwner, OpTable } from '../op-table.ts';
import { checkAddress } from '../socket-address.ts';
import type { SimEvent } from './events.ts';
import { openSimFile } from './file.ts';
import type { Sim } from './sim.ts';

/** Owner of an operation in a simulated world. */
export interface SimOwner extends OpOwner {
  /** The backend stops: `op` ends now, one way or another. */
  hurry(op: AioOp): void;
}

/** The longest that a wake-up takes. */
const WAKE_NS = 2_000;
const nothing = (): void => undefined;
const UNSUPPORTED: SimOwner = { cancel: nothing, hurry: nothing, describe: () => 'poll of a descriptor' };

export class SimBackend implements AioBackend {
  readonly name = 'sim';
  readonly detail: string;
  readonly wakeHandle = { kind: 'none' } as const;
  readonly sim: Sim;
  readonly #label: string;
  readonly #ops = new OpTable();
  #host: LoopHost | undefined;
  #turn: SimEvent | undefined;
  #timer: SimEvent | undefined;
  #timerAt: Nanoseconds = Number.POSITIVE_INFINITY;
  #stopping = false;
  #stopped = false;

  /** Use Sim.backend(). */
  constructor(sim: Sim, label: string) {
    this.sim = sim;
    this.#label = label;
    this.detail = `simulated, seed ${sim.seed}`;
  }

  now(): Nanoseconds {
    return this.sim.now;
  }

  start(host: LoopHost): void {
    assert(!this.#host, 'a backend is started once');
    this.#host = host;
    this.#arm();
  }

  wake(): void {
    if (this.#turn || this.#stopped || !this.#host) return;
    const turn = (): void => {
      this.#turn = undefined;
      if (this.#stopped) return;
      this.#host!.stats.turns++;
      this.#host!.timePasses();
      this.#host!.dispatch();
      this.#host!.timePasses();
      this.#arm();
    };
    this.#turn = this.sim.after(this.sim.prng.below(WAKE_NS), turn, true);
  }

  /** @internal For the world: other contexts may have scheduled something here. */
  takeRemote(): void {
    if (this.#host?.remotePending()) this.wake();
  }

  poll(block: boolean): boolean {
    if (block) throw new BlockError(Errno.ENOTSUP, 'Could not wait in a synchronous turn: time is simulated');
    const progress = this.#host!.dispatch();
    this.#arm();
    return progress;
  }

  /** Ends everything at once, so that it needs no events and may be called when the world stands still. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    for (const op of this.#ops.list()) (this.#ops.ownerOf(op) as SimOwner | undefined)?.hurry(op);
    dispatchRest(this.#host!);
    this.abandon();
  }

  abandon(): void {
    this.#stopped = true;
    if (this.#turn) this.#turn.cancelled = true;
    if (this.#timer) this.#timer.cancelled = true;
  }

  memory(bytes: Uint8Array): Memory {
    return { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), address: 0 };
  }

  release(memory: Memory, at: number, length: number): void {
    // What is given back is lost: a program that reads it again finds something else.
    memory.bytes.fill(0xdb, at, at + length);
  }

  async openFile(path: string, options: OpenFileOptions): Promise<AioFile> {
    return openSimFile(this, path, options);
  }

  async listen(address: SocketAddress, options: ListenOptions = {}): Promise<AioListener> {
    checkAddress(address, 'listen on');
    return this.sim.network.listen(this, address, options);
  }

  async connect(address: SocketAddress): Promise<AioSocket> {
    checkAddress(address, 'connect to');
    return this.sim.network.connect(this, address);
  }

  async adoptSocket(fd: number, shared = false): Promise<AioSocket> {
    if (shared) return this.sim.network.share(this, fd);
    throw new BlockError(Errno.ENOTSUP, `Could not take over socket ${fd}: a simulated world has no descriptors`);
  }

  async adoptListener(fd: number): Promise<AioListener> {
    throw new BlockError(Errno.ENOTSUP, `Could not take over socket ${fd}: a simulated world has no descriptors`);
  }

  pollFd(op: AioOp, _fd: number, _events: number): void {
    if (this.begin(op, UNSUPPORTED)) this.end(op, -Errno.ENOTSUP);
  }

  cancel(op: AioOp): void {
    this.#ops.ownerOf(op)?.cancel(op);
  }

  // For files and sockets.

  /** Takes `op` over. False when the backend is stopping: it then ends with -ECANCELED by itself. */
  begin(op: AioOp, owner: SimOwner): boolean {
    assert(!this.#stopped, 'an operation was given to a backend that has stopped');
    this.#ops.add(op, owner);
    this.#host!.stats.operations++;
    if (!this.#stopping) return true;
    this.end(op, -Errno.ECANCELED);
    return false;
  }

  /** The end of `op`, in the next dispatch. */
  end(op: AioOp, result: number): void {
    this.#ops.remove(op);
    this.#host!.completeLater(op, result);
  }

  /** What is in flight, for reports. */
  describe(): string[] {
    return this.#ops.describe().map((what) => `${this.#label}: ${what}`);
  }

  #arm(): void {
    if (this.#turn || this.#stopped) return;
    const deadline = this.#host!.nextDeadline();
    if (deadline <= this.sim.now) {
      this.wake();
      return;
    }
    if (deadline === this.#timerAt) return;
    if (this.#timer) this.#timer.cancelled = true;
    this.#timer = undefined;
    this.#timerAt = deadline;
    if (deadline === Number.POSITIVE_INFINITY) return;
    this.#timer = this.sim.after(deadline - this.sim.now, () => {
      this.#timerAt = Number.POSITIVE_INFINITY;
      this.wake();
    });
  }
}
