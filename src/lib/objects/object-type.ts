/** What a type of objects is, and its options, checked. Messages name the option and show no value of it. */
import { BlockError, Errno } from '../../base/errors.ts';
import { isOffset, parseBytes } from '../../base/units.ts';
import type { ObjectStore } from './store.ts';

/** What an object is to those who refer to it: several types may be of one kind. */
export class ObjectKind<T> {
  /** 'secret': as in "No secret with id 'x'". */
  readonly noun: string;
  /** 'a secret' */
  readonly what: string;
  declare readonly value: T;

  constructor(noun: string, what: string) {
    this.noun = noun;
    this.what = what;
  }
}

export interface ObjectOption {
  /** 'any': a tree, which the type checks itself. */
  readonly type: 'string' | 'secret' | 'boolean' | 'integer' | 'size' | 'enum' | 'any';
  readonly values?: readonly string[];
  readonly required?: boolean;
  /** Of a tree: what it is made of. */
  readonly members?: Readonly<Record<string, ObjectOption>>;
  /** It is a list of such. */
  readonly many?: boolean;
  readonly help: string;
}

export interface ObjectType<T = unknown> {
  /** `qom-type` */
  readonly name: string;
  readonly kind: ObjectKind<T>;
  /** Besides `qom-type` and `id`. */
  readonly options: Readonly<Record<string, ObjectOption>>;
  /** `options` are checked. Others are found in `objects`. Throws BlockError. */
  create(options: Readonly<Record<string, unknown>>, objects: ObjectStore, id: string): T | Promise<T>;
  /** What a property is now; undefined: what its options said. */
  get?(value: T, property: string): unknown;
  /** A property becomes something else, with effect at once. Default: none can. EINVAL. */
  set?(value: T, property: string, to: unknown): void | Promise<void>;
  /** Called before it is removed: EBUSY while it is in use. Default: those who have it keep what they have. */
  remove?(value: T, id: string): void | Promise<void>;
}

/** Options of the types that `specs` says; with `text`, they are strings still. EINVAL. */
export function objectOptions(
  specs: Readonly<Record<string, ObjectOption>>,
  given: Readonly<Record<string, unknown>>,
  text: boolean,
): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(specs, name)) throw wrong(`Parameter '${name}' is unexpected`);
    options[name] = text ? fromText(name, specs[name]!, value) : checked(name, specs[name]!, value);
  }
  for (const [name, spec] of Object.entries(specs)) {
    if (spec.required && options[name] === undefined) throw wrong(`Parameter '${name}' is missing`);
  }
  return options;
}

/** A string, or a tree. */
function fromText(name: string, spec: ObjectOption, value: unknown): unknown {
  if (spec.type === 'any') return value;
  if (typeof value !== 'string') throw wrong(`Parameters '${name}.*' are unexpected`);
  switch (spec.type) {
    case 'boolean':
      if (/^(on|yes|true|y)$/.test(value)) return true;
      if (/^(off|no|false|n)$/.test(value)) return false;
      throw wrong(`Parameter '${name}' expects 'on' or 'off'`);
    case 'integer': {
      const number = /^[+-]?(\d+|0x[\da-f]+)$/i.test(value) ? Number(value) : Number.NaN;
      if (!Number.isSafeInteger(number)) throw wrong(`Parameter '${name}' expects integer`);
      return number;
    }
    case 'size': {
      const bytes = parseBytes(value);
      if (bytes === undefined) throw wrong(`Parameter '${name}' expects a size`);
      return bytes;
    }
    default:
      return checked(name, spec, value);
  }
}

function checked(name: string, { type, values }: ObjectOption, value: unknown): unknown {
  const expect = (fits: boolean, expected: string): void => {
    if (!fits) throw wrong(`Invalid parameter type for '${name}', expected: ${expected}`);
  };
  if (type === 'any') return value;
  if (type === 'boolean') expect(typeof value === 'boolean', 'boolean');
  else if (type === 'integer') expect(Number.isSafeInteger(value), 'integer');
  else if (type === 'size') expect(isOffset(value), 'integer');
  else expect(typeof value === 'string', 'string');
  if (values && !values.includes(value as string)) {
    throw wrong(`Parameter '${name}' does not accept value '${value}'`);
  }
  return value;
}

export function wrong(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
