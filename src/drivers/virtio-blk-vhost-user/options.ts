/** The options of a virtio-blk-vhost-user node, by QAPI's names where it has them, and what they come to. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Nanoseconds } from '../../base/units.ts';
import type { OptionSpec } from '../../block/driver.ts';

export interface VhostUserOptions {
  readonly path: string;
  readonly 'num-queues'?: number;
  readonly packed?: boolean;
  readonly 'reconnect-delay'?: number;
  readonly 'request-timeout'?: number;
}

export const VHOST_USER_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  path: { type: 'string', required: true, help: "path of the back-end's unix socket" },
  'num-queues': { type: 'number', help: 'queues at most, where the back-end has several: 1 to 64 (default 1)' },
  packed: { type: 'boolean', help: 'packed rings, where the back-end has them (default off)' },
  'reconnect-delay': { type: 'number', help: 'seconds that requests wait for a back-end that was lost (default 0)' },
  'request-timeout': { type: 'number', help: 'seconds after which a request counts as lost; 0: never (default 120)' },
};

export const QUEUES_MAX = 64;
/** Long for a disk that has gigabytes to flush, and an end all the same. */
const REQUEST_SECONDS = 120;
/** Of a message, which needs no disk. */
const ANSWER_NS: Nanoseconds = 10e9;
/** A day. */
const SECONDS_MAX = 86_400;

export interface VhostUserTarget {
  readonly path: string;
  readonly queues: number;
  readonly packed: boolean;
  readonly reconnectNs: Nanoseconds;
  /** 0: for ever. */
  readonly requestNs: Nanoseconds;
  /** That a message may take, and connecting. */
  readonly answerNs: Nanoseconds;
}

/** EINVAL names the option that is wrong. */
export function vhostUserTarget(options: VhostUserOptions): VhostUserTarget {
  const { path, 'num-queues': queues = 1, packed = false } = options;
  if (path === '') throw refuse("'path' is empty");
  if (!Number.isInteger(queues) || queues < 1 || queues > QUEUES_MAX) {
    throw refuse(`'num-queues' is ${queues}, not 1 to ${QUEUES_MAX}`);
  }
  const reconnectNs = nanoseconds('reconnect-delay', options['reconnect-delay'] ?? 0);
  const requestNs = nanoseconds('request-timeout', options['request-timeout'] ?? REQUEST_SECONDS);
  const answerNs = requestNs === 0 ? ANSWER_NS : Math.min(requestNs, ANSWER_NS);
  return { path, queues, packed, reconnectNs, requestNs, answerNs };
}

function nanoseconds(name: string, seconds: number): Nanoseconds {
  if (seconds >= 0 && seconds <= SECONDS_MAX) return seconds * 1e9;
  throw refuse(`'${name}' is ${seconds}, not 0 to ${SECONDS_MAX} seconds`);
}

function refuse(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not open a 'virtio-blk-vhost-user' node: option ${why}`);
}
