/**
 * blkdebug: a filter under which requests fail, or stop, when drivers come to points of their work: see rules.ts and
 * stops.ts. It can also be narrower than what is below in what requests it takes. For tests.
 */
import { BlockError, Errno, ioError } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, isPowerOfTwo, type Offset } from '../../base/units.ts';
import {
  type Child,
  DEBUG_EVENTS,
  type DebugEvent,
  type Driver,
  type DriverNode,
  type Limits,
  type Mapping,
  type MapReason,
  type MaybePromise,
  type OpenContext,
  type OptionSpec,
  Perm,
  type Supported,
} from '../../block/driver.ts';
import { readConfig } from './config.ts';
import { type InjectError, IO_TYPES, type IoType, Rules, type SetState } from './rules.ts';
import { Stops } from './stops.ts';

/** By the names of QAPI's BlockdevOptionsBlkdebug. */
export interface BlkdebugOptions {
  readonly config?: string;
  readonly 'inject-error'?: readonly InjectError[];
  readonly 'set-state'?: readonly SetState[];
  readonly align?: Bytes;
  readonly 'max-transfer'?: Bytes;
  readonly 'opt-write-zero'?: Bytes;
  readonly 'max-write-zero'?: Bytes;
  readonly 'opt-discard'?: Bytes;
  readonly 'max-discard'?: Bytes;
  readonly 'take-child-perms'?: readonly PermName[];
  readonly 'unshare-child-perms'?: readonly PermName[];
}

type PermName = keyof typeof PERMS;

const PERMS = {
  'consistent-read': Perm.CONSISTENT_READ,
  write: Perm.WRITE,
  'write-unchanged': Perm.WRITE_UNCHANGED,
  resize: Perm.RESIZE,
} as const;

/** What a request may be limited to is below this. */
const LIMIT_MAX = 2 ** 31 - 1;
/** Linux's MAX_ERRNO. */
const ERRNO_MAX = 4095;

class BlkdebugNode implements DriverNode {
  readonly limits: Partial<Limits>;
  readonly nativeFua = true;
  readonly breakpoints = new Stops();
  readonly #name: string;
  readonly #image: Child;
  readonly #rules: Rules;

  constructor(name: string, image: Child, rules: Rules, limits: Partial<Limits>) {
    this.#name = name;
    this.#image = image;
    this.#rules = rules;
    this.limits = limits;
  }

  get length(): Bytes {
    return this.#image.length;
  }

  debugEvent(event: DebugEvent): MaybePromise<void> {
    this.#rules.reach(event);
    return this.breakpoints.reach(event);
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why !== 'status') out.other('opaque', want);
    else {
      this.#check('block-status', at, want);
      out.data(want, this.#image, at);
    }
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    this.#check('read', at, iov.length);
    await this.#image.read(at, iov);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    this.#check('write', at, iov.length);
    await this.#image.write(at, iov, flags);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    // What is shorter than it takes: the end of the disk.
    if (length < (this.limits.zeroAlignment ?? 1)) return 'unsupported';
    this.#check('write-zeroes', at, length);
    await this.#image.writeZeroes(at, length, flags);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    if (length < (this.limits.discardAlignment ?? 1)) return 'unsupported';
    this.#check('discard', at, length);
    await this.#image.discard(at, length);
    return 'done';
  }

  async flush(): Promise<void> {
    this.#check('flush', 0, 0);
  }

  grew(_end: Offset): void {}

  truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    return this.#image.truncate(length, prealloc);
  }

  #check(type: IoType, at: Offset, length: Bytes): void {
    const errno = this.#rules.errorOf(type, at, length);
    if (errno === 0) return;
    throw ioError(errno, `Could not do a ${type} of ${length} bytes at ${at}: a rule of node '${this.#name}'`, {
      ...{ node: this.#name, op: type, at, length },
    });
  }
}

const event: OptionSpec = { type: 'enum', values: DEBUG_EVENTS, required: true, help: 'what happens in a driver' };
const state: OptionSpec = { type: 'number', help: 'the state that the rule is for (default: any); the first one is 1' };

const injectError: Readonly<Record<string, OptionSpec>> = {
  ...{ event, state },
  iotype: { type: 'enum', values: IO_TYPES, help: 'requests that fail (default: all but block-status)' },
  errno: { type: 'number', help: 'what they fail with (default 5, EIO)' },
  sector: { type: 'number', help: 'the sector of 512 bytes that they are for (default: any)' },
  once: { type: 'boolean', help: 'one request fails, and no more (default: off)' },
  immediately: { type: 'boolean', help: 'accepted, and of no effect' },
};

const setState: Readonly<Record<string, OptionSpec>> = {
  ...{ event, state },
  new_state: { type: 'number', help: 'the state that follows' },
};

const permission: OptionSpec = { type: 'enum', values: Object.keys(PERMS), help: 'a permission' };

const options: Readonly<Record<string, OptionSpec>> = {
  config: { type: 'string', help: 'a file with rules' },
  'inject-error': {
    ...{ type: 'list', help: 'rules that make requests fail' },
    element: { type: 'object', members: injectError, help: 'a rule' },
  },
  'set-state': {
    ...{ type: 'list', help: 'rules that change the state' },
    element: { type: 'object', members: setState, help: 'a rule' },
  },
  align: { type: 'size', help: 'requests are multiples of this' },
  'max-transfer': { type: 'size', help: 'the longest read or write' },
  'opt-write-zero': { type: 'size', help: 'zero writes are multiples of this' },
  'max-write-zero': { type: 'size', help: 'the longest zero write' },
  'opt-discard': { type: 'size', help: 'discards are multiples of this' },
  'max-discard': { type: 'size', help: 'the longest discard' },
  'take-child-perms': { type: 'list', element: permission, help: 'permissions that it takes on the image' },
  'unshare-child-perms': { type: 'list', element: permission, help: 'permissions that it leaves to nobody else' },
};

export const blkdebugDriver: Driver<BlkdebugOptions> = {
  name: 'blkdebug',
  role: 'filter',
  children: { image: 'filtered' },
  options,
  claims(given) {
    const { 'take-child-perms': take = [], 'unshare-child-perms': unshare = [] } = given as BlkdebugOptions;
    return { perm: permsOf(take), unshared: permsOf(unshare) };
  },
  async open(context: OpenContext, given: BlkdebugOptions): Promise<DriverNode> {
    const rules = await rulesOf(given);
    const image = await context.openChild('image', 'filtered');
    if (!image) throw refusal("option 'image' is missing");
    const node = new BlkdebugNode(context.nodeName, image, rules, limitsOf(given));
    rules.reach('none');
    return node;
  },
};

async function rulesOf(given: BlkdebugOptions): Promise<Rules> {
  const sections = { 'inject-error': injectError, 'set-state': setState };
  const config = given.config ? await readConfig(given.config, sections) : undefined;
  const all = (name: 'inject-error' | 'set-state'): (InjectError & SetState)[] => {
    const rules = [...(config?.get(name) ?? []), ...(given[name] ?? [])] as (InjectError & SetState)[];
    for (const rule of rules) assertRule(name, rule);
    return rules;
  };
  return new Rules(all('inject-error'), all('set-state'));
}

function assertRule(name: string, rule: InjectError & SetState): void {
  if (rule.event === undefined) throw refusal(`a rule of '${name}' has no event`);
  for (const [option, from, to] of [
    ['state', 0, LIMIT_MAX],
    ['new_state', 0, LIMIT_MAX],
    ['errno', 0, ERRNO_MAX],
    ['sector', -1, Number.MAX_SAFE_INTEGER],
  ] as const) {
    const value = rule[option] ?? 0;
    if (Number.isSafeInteger(value) && value >= from && value <= to) continue;
    throw refusal(`'${option}' of a rule of '${name}' is ${value}, not ${from} to ${to}`);
  }
}

/** 0 and undefined: no limit of its own. */
function limitsOf(given: BlkdebugOptions): Partial<Limits> {
  const { align = 0 } = given;
  if (align !== 0 && !(align < LIMIT_MAX && isPowerOfTwo(align))) {
    throw refusal(`Cannot meet constraints with align ${align}`);
  }
  const checked = (name: keyof BlkdebugOptions, unit: Bytes): Bytes => {
    const value = (given[name] as Bytes | undefined) ?? 0;
    if (value < LIMIT_MAX && value % unit === 0) return value;
    throw refusal(`Cannot meet constraints with ${name} ${value}`);
  };
  const unit = align || 1;
  const [zeroAlignment, discardAlignment] = [checked('opt-write-zero', unit), checked('opt-discard', unit)];
  return {
    ...(align === 0 ? {} : { alignment: align }),
    maxTransfer: checked('max-transfer', unit),
    ...{ zeroAlignment, discardAlignment },
    maxZero: checked('max-write-zero', zeroAlignment || unit),
    maxDiscard: checked('max-discard', discardAlignment || unit),
  };
}

function permsOf(names: readonly PermName[]): number {
  return names.reduce((perm, name) => perm | PERMS[name], 0);
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not open a 'blkdebug' node: ${why}`);
}
