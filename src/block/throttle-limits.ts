/** What a throttle group allows: rates, and how far they may be exceeded for how long. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';

/** One rate. */
export interface ThrottleRate {
  /** Bytes, or requests, a second in the long run; 0 for no limit. */
  readonly avg: number;
  /** The same in bursts; 0 (default): what the tenth of a second brings may come at once. */
  readonly max?: number;
  /** Seconds that a burst at `max` may last. Default 1. */
  readonly maxLength?: number;
}

export const RATES = ['bpsTotal', 'bpsRead', 'bpsWrite', 'iopsTotal', 'iopsRead', 'iopsWrite'] as const;
export type RateName = (typeof RATES)[number];

/** Those that are left out do not limit. */
export type ThrottleLimits = Readonly<Partial<Record<RateName, ThrottleRate>>> & {
  /** A request counts as one for each so many bytes that it begins; 0 (default): as one. */
  readonly iopsSize?: Bytes;
};

/** Largest rate that is counted exactly. */
const RATE_MAX = 1e15;

/** EINVAL names what cannot be. */
export function checkLimits(limits: ThrottleLimits): void {
  const refuse = (why: string): BlockError => new BlockError(Errno.EINVAL, `Could not throttle: ${why}`);
  const rate = (name: RateName): ThrottleRate => limits[name] ?? { avg: 0 };
  for (const name of RATES) checkRate(rate(name), (why) => refuse(`'${name}' ${why}`));
  for (const kind of ['bps', 'iops'] as const) {
    const [total, read, write] = [rate(`${kind}Total`), rate(`${kind}Read`), rate(`${kind}Write`)];
    if (total.avg > 0 && read.avg + write.avg > 0) {
      throw refuse(`'${kind}Total' cannot be given with '${kind}Read' or '${kind}Write'`);
    }
  }
  const { iopsSize = 0 } = limits;
  if (!Number.isSafeInteger(iopsSize) || iopsSize < 0) throw refuse(`'iopsSize' is ${iopsSize}, not a number of bytes`);
  if (iopsSize > 0 && rate('iopsTotal').avg + rate('iopsRead').avg + rate('iopsWrite').avg === 0) {
    throw refuse("'iopsSize' needs a limit of requests");
  }
}

function checkRate({ avg, max = 0, maxLength = 1 }: ThrottleRate, refuse: (why: string) => BlockError): void {
  for (const [name, value] of [['avg', avg] as const, ['max', max] as const]) {
    if (!Number.isFinite(value) || value < 0 || value > RATE_MAX) {
      throw refuse(`has an '${name}' of ${value}, not a number from 0 to 10^15`);
    }
  }
  if (max > 0 && avg === 0) throw refuse("has a 'max' and no 'avg'");
  if (max > 0 && max < avg) throw refuse(`has a 'max' of ${max}, less than its 'avg' of ${avg}`);
  if (!Number.isInteger(maxLength) || maxLength < 1) {
    throw refuse(`has a 'maxLength' of ${maxLength}, not a number of whole seconds`);
  }
  if (maxLength > 1 && max === 0) throw refuse("has a 'maxLength' and no 'max'");
  if (max * maxLength > RATE_MAX) throw refuse(`has a 'maxLength' of ${maxLength}, too long for a 'max' of ${max}`);
}
