/** The schema of a daemon: that of the monitor, and what the drivers take. */
import type { Driver, OptionSpec } from '../block/driver.ts';
import { COMMON_OPTIONS } from '../block/options.ts';
import { driverTable } from '../block/registry.ts';
import { builtinDrivers } from '../lib/builtin-drivers.ts';
import type { ObjectOption, ObjectType } from '../lib/objects/object-type.ts';
import { secretOption } from '../lib/objects/resolve.ts';
import { SCHEMA } from '../qmp/schema/schema.ts';
import type { Members, Schema, Union } from '../qmp/schema/types.ts';

const ENUMS: Readonly<Record<string, string>> = {
  discard: 'BlockdevDiscardOptions',
  'detect-zeroes': 'BlockdevDetectZeroesOptions',
};

/** With the drivers that come along, and these types of objects. */
export function builtinSchema(objects: readonly ObjectType[] = []): Schema {
  builtinDrivers();
  return withObjectTypes(withDrivers(SCHEMA, driverTable()), objects);
}

function withObjectTypes(schema: Schema, types: readonly ObjectType[]): Schema {
  const enums: Record<string, readonly string[]> = {
    ...schema.enums,
    ObjectType: types.map(({ name }) => name).sort(),
  };
  const structs: Record<string, Members> = { ...schema.structs };
  const branches = Object.fromEntries(
    types.map(({ name, options }) => [name, objectMembers(name, options, enums, structs)]),
  );
  const base = { 'qom-type': 'ObjectType', id: 'str' };
  const unions = { ...schema.unions, ObjectOptions: { tag: 'qom-type', base, branches } };
  return { ...schema, enums, structs, unions };
}

/** `prefix` of the types that the options need. */
function objectMembers(
  prefix: string,
  options: Readonly<Record<string, ObjectOption>>,
  enums: Record<string, readonly string[]>,
  structs: Record<string, Members>,
): Members {
  const entries = Object.entries(options).map(([name, spec]) => {
    const own = `${prefix}-${name}`;
    if (spec.values) enums[own] = spec.values;
    if (spec.members) structs[own] = objectMembers(own, spec.members, enums, structs);
    const type = spec.members ? own : (OBJECT_OPTIONS[spec.type] ?? own);
    return [spec.required ? name : `${name}?`, spec.many ? `[${type}]` : type];
  });
  return Object.fromEntries(entries);
}

const OBJECT_OPTIONS: Readonly<Record<string, string>> = {
  string: 'str',
  secret: 'str',
  boolean: 'bool',
  integer: 'int',
  size: 'size',
  any: 'any',
};

/** `drivers`: by each name that they are known under. */
function withDrivers(schema: Schema, drivers: ReadonlyMap<string, Driver>): Schema {
  const enums: Record<string, readonly string[]> = { ...schema.enums, BlockdevDriver: [...drivers.keys()].sort() };
  const structs: Record<string, Members> = { ...schema.structs };
  const branches = Object.fromEntries(
    [...drivers].map(([name, driver]) => {
      return [name, { ...children(driver), ...members(driver.name, driver.options, enums, structs) }];
    }),
  );
  return {
    ...schema,
    enums,
    structs,
    alternates: { ...schema.alternates, TlsCredsOrId: ['nbd-tls-creds', 'str'] },
    unions: {
      ...schema.unions,
      BlockdevAmendOptions: amendment(drivers),
      BlockdevCreateOptions: creation(drivers, enums, structs),
      BlockdevOptions: { tag: 'driver', base: { ...commonMembers(), 'cache?': 'BlockdevCacheOptions' }, branches },
    },
  };
}

function commonMembers(): Members {
  const entries = Object.entries(COMMON_OPTIONS).map(([name, spec]) => {
    if (name === 'driver') return [name, 'BlockdevDriver'];
    return [`${name}?`, ENUMS[name] ?? typeOf(spec, '')];
  });
  return Object.fromEntries(entries);
}

/** What new images are made with: `file` makes the file, the formats what is in it. */
function creation(
  drivers: ReadonlyMap<string, Driver>,
  enums: Record<string, readonly string[]>,
  structs: Record<string, Members>,
): Union {
  const branches: Record<string, Members> = {
    file: { filename: 'str', size: 'bytes', 'preallocation?': 'PreallocMode' },
  };
  for (const [name, driver] of drivers) {
    if (!driver.createOptions) continue;
    const { compat, 'backing-file': backing, 'data-file': data, ...rest } = driver.createOptions;
    if (compat) enums.BlockdevQcow2Version = ['v2', 'v3'];
    branches[name] = {
      file: 'BlockdevRef',
      ...(data ? { 'data-file?': 'BlockdevRef' } : {}),
      ...(compat ? { 'version?': 'BlockdevQcow2Version' } : {}),
      ...(backing ? { 'backing-file?': 'str' } : {}),
      ...members(`${name}-create`, rest, enums, structs),
    };
  }
  enums.BlockdevCreateDriver = Object.keys(branches).sort();
  return { tag: 'driver', base: { driver: 'BlockdevCreateDriver' }, branches };
}

/** What changes of an image that is there; the name of its backing file has a command of its own. */
function amendment(drivers: ReadonlyMap<string, Driver>): Union {
  const branches: Record<string, Members> = {};
  for (const [name, { amendOptions = [], createOptions = {} }] of drivers) {
    const own = amendOptions.filter((option) => !option.startsWith('backing-'));
    branches[name] = Object.fromEntries(
      own.map((option) =>
        option === 'compat' ? ['version?', 'BlockdevQcow2Version'] : [`${option}?`, typeOf(createOptions[option]!, '')],
      ),
    );
  }
  return { tag: 'driver', base: { driver: 'BlockdevDriver' }, branches };
}

/** What a node can do without. */
const OPTIONAL_CHILDREN: ReadonlySet<string> = new Set(['backing', 'data-file']);

function children({ children: roles = {} }: Driver): Members {
  const entries = Object.entries(roles).map(([name, role]) => [
    OPTIONAL_CHILDREN.has(name) ? `${name}?` : name,
    role === 'cow' ? 'BlockdevRefOrNull' : 'BlockdevRef',
  ]);
  return Object.fromEntries(entries);
}

/** What may stand in the place of these groups: the id of an object. */
const NAMED_GROUPS: Readonly<Record<string, string>> = { 'tls-creds': 'TlsCredsOrId' };

/** Options; those with a dot in their names are a struct of its own. `prefix` of the types that they need. */
function members(
  prefix: string,
  options: Driver['options'],
  enums: Record<string, readonly string[]>,
  structs: Record<string, Members>,
): Members {
  const own: Record<string, string> = {};
  for (const [option, spec] of Object.entries(withSecretNames(options))) {
    const [group, member] = split(option);
    const name = `${prefix}-${option}`;
    const type = declared(spec, name, enums, structs);
    if (member === undefined) {
      own[spec.required ? option : `${option}?`] = type;
      continue;
    }
    const struct = `${prefix}-${group}`;
    structs[struct] = { ...structs[struct], [spec.required ? member : `${member}?`]: type };
    if (spec.required) delete own[`${group}?`];
    if (spec.required || !own[group]) own[spec.required ? group : `${group}?`] = NAMED_GROUPS[group] ?? struct;
  }
  return own;
}

/** The type of an option; enums and structs that it needs are called `name`. */
function declared(
  spec: OptionSpec,
  name: string,
  enums: Record<string, readonly string[]>,
  structs: Record<string, Members>,
): string {
  if (spec.type === 'list') return `[${declared(spec.element!, name, enums, structs)}]`;
  if (spec.type === 'object') {
    const members = Object.entries(spec.members!).map(([member, own]) => [
      own.required ? member : `${member}?`,
      declared(own, `${name}-${member}`, enums, structs),
    ]);
    structs[name] = Object.fromEntries(members);
    return name;
  }
  if (spec.values) enums[name] = spec.values;
  return typeOf(spec, name);
}

/** A secret is given itself, or by the name of the object that has it. */
function withSecretNames(options: Driver['options']): Driver['options'] {
  const names = Object.keys(options).filter((option) => secretOption(`${option}-secret`) === option);
  const named = names.map((option) => [
    `${option}-secret`,
    { type: 'string', help: `a secret object for '${option}'` } as const,
  ]);
  return { ...options, ...Object.fromEntries(named) };
}

function split(option: string): readonly [string, string | undefined] {
  const dot = option.indexOf('.');
  return dot < 0 ? [option, undefined] : [option.slice(0, dot), option.slice(dot + 1)];
}

function typeOf({ type }: OptionSpec, enumName: string): string {
  switch (type) {
    case 'boolean':
      return 'bool';
    case 'size':
      return 'bytes';
    case 'number':
      return 'int';
    case 'enum':
      return enumName;
    default:
      return 'str';
  }
}
