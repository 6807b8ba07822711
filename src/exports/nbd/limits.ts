/**
 * What bounds an NBD server, and what a server and its connections tell each other. Hostile clients are the reason for
 * each of these numbers.
 */

import { BlockError, Errno } from '../../base/errors.ts';
import type { Bytes, Nanoseconds } from '../../base/units.ts';
import { GiB, isPowerOfTwo, KiB, MiB } from '../../base/units.ts';

export interface NbdLimits {
  /** Clients at a time, handshakes included; 0 for no limit. The next one waits in the listener's backlog. */
  readonly maxConnections: number;
  /** How long a handshake may take before the connection is cut; 0 for no limit. */
  readonly handshakeNs: Nanoseconds;
  /** Options in one handshake; {@link optionsPerExport} more are allowed for each export, since clients that list
   *  exports ask about each of them. */
  readonly maxOptions: number;
  readonly optionsPerExport: number;
  /** Payload of one option; a longer one is skipped and answered with ERR_TOO_BIG. At most 48 KiB. */
  readonly maxOptionBytes: Bytes;
  /** Everything a client may send in a handshake; what would go beyond ends the connection. */
  readonly maxHandshakeBytes: Bytes;
  readonly maxExports: number;
  /** Requests in flight in one connection. More are left in the socket. */
  readonly maxRequests: number;
  /** Payload of one request or reply; a power of two from 64 KiB to 32 MiB. */
  readonly maxPayload: Bytes;
  /** Payload memory of all connections together, at least {@link maxPayload}. Running out means waiting. */
  readonly maxBuffered: Bytes;
}

export const DEFAULT_LIMITS: NbdLimits = {
  maxConnections: 100,
  handshakeNs: 10e9,
  maxOptions: 32,
  optionsPerExport: 4,
  maxOptionBytes: 32 * KiB,
  maxHandshakeBytes: 4 * MiB,
  maxExports: 10_000,
  maxRequests: 128,
  maxPayload: 32 * MiB,
  maxBuffered: 64 * MiB,
};

/** The defaults with `changes`. Throws EINVAL for limits that cannot work. */
export function resolveLimits(changes: Partial<NbdLimits> = {}): NbdLimits {
  const limits = { ...DEFAULT_LIMITS, ...changes };
  const refuse = (name: keyof NbdLimits, rule: string): never => {
    throw new BlockError(Errno.EINVAL, `Could not set NBD limit ${name} to ${limits[name]}: ${rule}`);
  };
  for (const name of Object.keys(DEFAULT_LIMITS) as (keyof NbdLimits)[]) {
    if (!(Number.isSafeInteger(limits[name]) && limits[name] >= 0)) refuse(name, 'it is not a whole number from 0 up');
  }
  if (limits.maxOptionBytes < 1 * KiB || limits.maxOptionBytes > 48 * KiB) refuse('maxOptionBytes', 'not 1 to 48 KiB');
  const { maxPayload } = limits;
  if (!isPowerOfTwo(maxPayload) || maxPayload < 64 * KiB || maxPayload > 32 * MiB) {
    refuse('maxPayload', 'not a power of two from 64 KiB to 32 MiB');
  }
  if (limits.maxBuffered < maxPayload) refuse('maxBuffered', `less than one payload of ${maxPayload} bytes`);
  if (limits.maxBuffered > 1 * GiB) refuse('maxBuffered', 'more than 1 GiB');
  if (limits.maxRequests < 1) refuse('maxRequests', 'a connection needs one request at least');
  return limits;
}

/** How a server asks a connection to end in good order. Home thread only. */
export class StopSignal {
  /** True once {@link raise} was called. */
  raised = false;
  /** True while the connection is to end as soon as all that it has begun is answered, since its client is to be served
   *  elsewhere. */
  leaving = false;
  /** Set by the connection: called once, at the time of raise(). */
  onRaise: (() => void) | undefined;
  /** Set by the connection: called when {@link leaving} has changed. */
  onLeaving: (() => void) | undefined;
  /** Set by the connection: called when its export is not drained any more. */
  onResume: (() => void) | undefined;
  /** Set by the connection: called when the client is cut off, so that it ends even while it waits for nothing of the
   *  socket's. */
  onCut: (() => void) | undefined;
  /** Set by the connection: called now and then while others wait for memory. */
  onStarved: (() => void) | undefined;

  raise(): void {
    if (this.raised) return;
    this.raised = true;
    this.onRaise?.();
  }

  /** The connection has ended. */
  forget(): void {
    this.onRaise = undefined;
    this.onLeaving = undefined;
    this.onResume = undefined;
    this.onCut = undefined;
    this.onStarved = undefined;
  }

  leave(leaving: boolean): void {
    if (this.leaving === leaving) return;
    this.leaving = leaving;
    this.onLeaving?.();
  }
}

/** What has gone through the connections of a server; each counts into the same record. */
export interface NbdTraffic {
  requests: number;
  /** Replies that were errors. */
  errors: number;
  /** Bytes received and sent in the transmission phase. */
  bytesIn: number;
  bytesOut: number;
}

/** What a server gives a connection besides the socket. */
export interface ConnectionHooks {
  readonly traffic: NbdTraffic;
  /**
   * Once raised, the connection reads no new request, finishes those in flight, sends their replies, and ends. It looks
   * at `raised` first, for a signal that came before it set `onRaise`.
   */
  readonly stop: StopSignal;
}
