/** nbd: an export of an NBD server, over as many connections as it allows. */
import type { AioOp } from '../../aio/op.ts';
import { BlockError, Errno, ioError } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, GiB, MiB, type Nanoseconds, type Offset } from '../../base/units.ts';
import {
  type Driver,
  type DriverNode,
  type Limits,
  type OpenContext,
  RequestFlags,
  type StatusResult,
  type Supported,
} from '../../block/driver.ts';
import {
  AllocationFlag,
  BASE_ALLOCATION,
  Command,
  CommandFlag,
  DIRTY,
  TransmissionFlag,
} from '../../proto/nbd/constants.ts';
import type { StatusExtent } from '../../proto/nbd/reply.ts';
import { Connector } from './connector.ts';
import { NBD_OPTIONS, type NbdOptions, type NbdTarget, nbdTarget } from './options.ts';
import { firstConnection, NbdSession } from './session.ts';

/** Runs in the memory of one request: with the headers they stay below IOV_MAX. */
const IOV_RUNS_MAX = 900;
/** The longest zero request, trim and status with 32-bit lengths; a multiple of every block. */
const COMPACT_MAX = 2 * GiB;
/** What is near is asked about as well: whoever asks goes on from there. */
const STATUS_MIN = 16 * MiB;
/** How old an answer about block status may be: somebody else may write to the export. */
const STATUS_NS: Nanoseconds = 100e6;

class NbdNode implements DriverNode {
  readonly length: Bytes;
  readonly limits: Partial<Limits>;
  readonly nativeFua: boolean;
  readonly readOnly: boolean;
  readonly #context: OpenContext;
  readonly #target: NbdTarget;
  readonly #connector: Connector;
  readonly #session: NbdSession;
  /** The last answer about block status, where it begins, and until when it holds. */
  #extents: readonly StatusExtent[] = [];
  #extentsAt: Offset = 0;
  #extentsUntil: Nanoseconds = 0;
  #extentsChanges = 0;

  constructor(context: OpenContext, target: NbdTarget, connector: Connector, session: NbdSession, readOnly: boolean) {
    this.#context = context;
    this.#target = target;
    this.#connector = connector;
    this.#session = session;
    this.readOnly = readOnly;
    const { size, minBlock, preferred, maxPayload, extended } = session.server;
    this.length = size;
    this.nativeFua = this.#can(TransmissionFlag.SEND_FUA);
    const most = extended ? 0 : COMPACT_MAX;
    this.limits = {
      ...{ alignment: minBlock, optimal: preferred, maxTransfer: maxPayload, maxIov: IOV_RUNS_MAX },
      ...{ maxZero: most, maxDiscard: most },
    };
  }

  #can(flag: number): boolean {
    return (this.#session.server.flags & flag) !== 0;
  }

  submitRead(op: AioOp, iov: Iov, at: Offset): void {
    this.#submit(op, Command.READ, iov, at, 0);
  }

  submitWrite(op: AioOp, iov: Iov, at: Offset, flags: number): void {
    this.#submit(op, Command.WRITE, iov, at, (flags & RequestFlags.FUA) !== 0 ? CommandFlag.FUA : 0);
  }

  #submit(op: AioOp, type: number, iov: Iov, at: Offset, flags: number): void {
    const command = this.#session.take();
    command.op = op;
    command.type = type;
    command.flags = flags;
    command.at = at;
    command.length = iov.length;
    command.iov = iov;
    this.#session.submit(command);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    const quick = (flags & RequestFlags.NO_FALLBACK) !== 0;
    if (!this.#can(TransmissionFlag.SEND_WRITE_ZEROES)) return 'unsupported';
    if (quick && !this.#can(TransmissionFlag.SEND_FAST_ZERO)) return 'unsupported';
    const hole = (flags & RequestFlags.MAY_UNMAP) === 0 ? CommandFlag.NO_HOLE : 0;
    const fast = quick ? CommandFlag.FAST_ZERO : 0;
    // FUA is left to the flush that follows.
    const result = await this.#session.run(Command.WRITE_ZEROES, at, length, hole | fast);
    if (result === -Errno.ENOTSUP) return 'unsupported';
    if (result < 0) throw this.#failed(`zero ${length} bytes at ${at} of`, result);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    if (!this.#can(TransmissionFlag.SEND_TRIM)) return 'unsupported';
    const result = await this.#session.run(Command.TRIM, at, length, 0);
    if (result === -Errno.ENOTSUP) return 'unsupported';
    if (result < 0) throw this.#failed(`discard ${length} bytes at ${at} of`, result);
    return 'done';
  }

  async prefetch(at: Offset, length: Bytes): Promise<void> {
    if (!this.#can(TransmissionFlag.SEND_CACHE)) return;
    const most = this.limits.maxTransfer!;
    for (let done = 0; done < length; done += most) {
      const result = await this.#session.run(Command.CACHE, at + done, Math.min(most, length - done), 0);
      if (result < 0) return;
    }
  }

  flush(): Promise<void> {
    return this.#session.flush();
  }

  /** The server is told nothing: the other thread has a connection of its own. */
  inactivate(): Record<string, unknown> {
    return {};
  }

  async status(at: Offset, want: Bytes, out: StatusResult): Promise<void> {
    out.kind = 'data';
    out.length = want;
    if (this.#session.server.contextId < 0 || this.#known(at, want, out)) return;
    const ask = Math.min(this.length - at, Math.max(want, STATUS_MIN), COMPACT_MAX);
    const { changes } = this.#session;
    let extents: readonly StatusExtent[] = [];
    const result = await this.#session.run(Command.BLOCK_STATUS, at, ask, 0, (command) => {
      extents = command.extents ?? [];
    });
    if (result < 0) throw this.#failed(`get the block status of ${ask} bytes at ${at} of`, result);
    this.#extents = extents;
    this.#extentsAt = at;
    this.#extentsChanges = changes;
    this.#extentsUntil = this.#context.aio.now() + STATUS_NS;
    this.#find(at, want, out);
  }

  /** Answers out of the last reply, if nothing was changed from here since it was asked for. */
  #known(at: Offset, want: Bytes, out: StatusResult): boolean {
    if (this.#session.changes !== this.#extentsChanges || this.#context.aio.now() >= this.#extentsUntil) return false;
    return this.#find(at, want, out);
  }

  #find(at: Offset, want: Bytes, out: StatusResult): boolean {
    if (at < this.#extentsAt) return false;
    let from = this.#extentsAt;
    for (const { length, flags } of this.#extents) {
      const end = from + length;
      if (at < end) {
        out.kind = this.#kind(flags);
        out.length = Math.min(want, end - at);
        return true;
      }
      from = end;
    }
    return false;
  }

  /** A hole that is not said to be zeroes has something unknown in it: data. */
  #kind(flags: number): StatusResult['kind'] {
    if (this.#target.context !== BASE_ALLOCATION) return (flags & DIRTY) !== 0 ? 'hole' : 'data';
    return (flags & AllocationFlag.ZERO) !== 0 ? 'zero' : 'data';
  }

  info(): Record<string, unknown> {
    const { flags, extended, structured } = this.#session.server;
    return { uri: this.#target.name, flags, extended, structured, connections: this.#session.connections };
  }

  /** A flush of the session's own. */
  drainBusy(): boolean {
    return this.#session.settling > 0;
  }

  async close(): Promise<void> {
    await this.#session.close();
    this.#connector.close();
  }

  #failed(what: string, errno: number): BlockError {
    return ioError(errno, `Could not ${what} '${this.#target.name}'`, { path: this.#target.name });
  }
}

async function open(context: OpenContext, options: NbdOptions): Promise<DriverNode> {
  const target = nbdTarget(options);
  const connector = await Connector.of(context.aio, target);
  const first = await firstConnection(context.aio, target, connector);
  const sealed = (first.server.flags & TransmissionFlag.READ_ONLY) !== 0;
  const refuse = async (errno: number, why: string): Promise<never> => {
    await first.socket.close();
    const where = { path: target.name, op: 'open' };
    throw new BlockError(errno, `Could not open '${target.name}': ${why}`, { where });
  };
  if (sealed && !context.readOnly && !context.common['auto-read-only']) {
    await refuse(Errno.EACCES, 'the server has it read-only');
  }
  if (target.context !== BASE_ALLOCATION && first.server.contextId < 0) {
    await refuse(Errno.ENOENT, `the server does not have '${target.context}'`);
  }
  const readOnly = sealed || context.readOnly;
  const session = new NbdSession(context.aio, target, connector, first, readOnly, () => context.quiet());
  return new NbdNode(context, target, connector, session, readOnly);
}

export const nbdDriver: Driver<NbdOptions> = { name: 'nbd', role: 'protocol', options: NBD_OPTIONS, open };
