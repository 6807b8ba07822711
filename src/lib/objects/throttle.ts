/** `throttle-group`: what the nodes that name it may do together, in whichever IOThread they are (docs/THROTTLE.md). */
import { BlockError, Errno } from '../../base/errors.ts';
import { ThrottleGroup } from '../../block/throttle-group.ts';
import { RATES, type RateName, type ThrottleLimits, type ThrottleRate } from '../../block/throttle-limits.ts';
import { ObjectKind, type ObjectOption, type ObjectType, objectOptions, wrong } from './object-type.ts';

/** Rates by QAPI's names: `bps-total`, `bps-total-max`, `bps-total-max-length`, `iops-read`, ..., and `iops-size`. */
export type ThrottleGroupLimits = Readonly<Record<string, number>>;

export interface ThrottleGroupOptions {
  readonly 'qom-type': 'throttle-group';
  readonly id: string;
  readonly limits?: ThrottleGroupLimits | undefined;
}

export const THROTTLE_GROUP = new ObjectKind<ThrottleGroup>('throttle group', 'a throttle group');

/** 'bps-total' for 'bpsTotal'. */
const NAMES = RATES.map((name) => name.replace(/[A-Z]/, (letter) => `-${letter.toLowerCase()}`));

const LIMITS: Readonly<Record<string, ObjectOption>> = Object.fromEntries([
  ...NAMES.flatMap((name) => [
    [name, { type: 'size', help: 'in the long run, a second' }],
    [`${name}-max`, { type: 'size', help: 'in bursts, a second' }],
    [`${name}-max-length`, { type: 'integer', help: 'seconds that a burst may last (1)' }],
  ]),
  ['iops-size', { type: 'size', help: 'bytes that count as one request' }],
]);

/** The same one by one, as command lines have them. */
const SINGLE = Object.fromEntries(Object.entries(LIMITS).map(([name, option]) => [`x-${name}`, option]));

export const throttleGroupType: ObjectType<ThrottleGroup> = {
  name: 'throttle-group',
  kind: THROTTLE_GROUP,
  options: { limits: { type: 'any', members: LIMITS, help: 'the limits, by the names below without x-' }, ...SINGLE },
  create: ({ limits = {}, ...single }, _objects, id) => {
    if (typeof limits !== 'object' || limits === null)
      throw wrong("Invalid parameter type for 'limits', expected: object");
    const text = Object.values(limits).some((value) => typeof value === 'string');
    const given = objectOptions(LIMITS, limits as Readonly<Record<string, unknown>>, text);
    for (const [name, value] of Object.entries(single)) given[name.slice('x-'.length)] = value;
    return ThrottleGroup.create(id, limitsOf(given as ThrottleGroupLimits));
  },
  get: (group, property) => {
    const limits = limitsNow(group);
    return property === 'limits' ? limits : limits[property.slice('x-'.length)];
  },
  set: (group, property, to) => {
    if (property !== 'limits') throw wrong('Property cannot be set after initialization');
    if (typeof to !== 'object' || to === null) throw wrong("Invalid parameter type for 'limits', expected: object");
    const unknown = Object.keys(to).find((name) => !Object.hasOwn(LIMITS, name));
    if (unknown !== undefined) throw wrong(`Parameter 'limits.${unknown}' is unexpected`);
    const given = objectOptions(LIMITS, to as Readonly<Record<string, unknown>>, false);
    group.setLimits(limitsOf({ ...limitsNow(group), ...given } as ThrottleGroupLimits));
  },
  remove(group, id) {
    if (group.users > 0) throw new BlockError(Errno.EBUSY, `object '${id}' is in use, can not be deleted`);
    group.delete();
  },
};

/** All of them by their names, with what they are where nobody has said it. */
function limitsNow({ limits }: ThrottleGroup): ThrottleGroupLimits {
  const entries = RATES.flatMap((rate, i) => {
    const { avg = 0, max = 0, maxLength = 1 } = limits[rate] ?? {};
    const name = NAMES[i]!;
    return [
      [name, avg],
      [`${name}-max`, max],
      [`${name}-max-length`, maxLength],
    ];
  });
  return { ...Object.fromEntries(entries), 'iops-size': limits.iopsSize ?? 0 };
}

function limitsOf(given: ThrottleGroupLimits): ThrottleLimits {
  const rates = RATES.map((rate, i): [RateName, ThrottleRate] => {
    const name = NAMES[i]!;
    const [avg = 0, max, maxLength] = [given[name], given[`${name}-max`], given[`${name}-max-length`]];
    return [rate, { avg, ...(max === undefined ? {} : { max }), ...(maxLength === undefined ? {} : { maxLength }) }];
  });
  const iopsSize = given['iops-size'];
  return { ...Object.fromEntries(rates), ...(iopsSize === undefined ? {} : { iopsSize }) };
}
