/**
 * Values against the schema, as JSON or as texts of a command line. What comes out is a tree of its own: objects hold
 * what the schema names and nothing else. The first thing that is wrong is refused by its path.
 */

import { QmpError } from './errors.ts';
import { emptyObject, isInt64, isObject, WideInteger } from './json.ts';
import type { Members, Schema, Union } from './schema/types.ts';

/** How values are written: `json`, or `text` where each is a string. */
export type Style = 'json' | 'text';

const INTEGERS: Readonly<Record<string, readonly [number, number] | undefined>> = {
  int: undefined,
  int64: undefined,
  size: undefined,
  bytes: undefined,
  uint64: undefined,
  uint32: [0, 2 ** 32 - 1],
  uint16: [0, 2 ** 16 - 1],
  uint8: [0, 255],
};

const ON = new Set(['on', 'yes', 'true', 'y']);
const OFF = new Set(['off', 'no', 'false', 'n']);
const SUFFIXES = 'BKMGTPE';

/** Objects inside each other: as many as there may be images above each other, and a few for what is around them. */
const DEPTH_MAX = 300;

export class Checker {
  readonly #schema: Schema;
  readonly #text: boolean;
  #depth = 0;

  constructor(schema: Schema, style: Style = 'json') {
    this.#schema = schema;
    this.#text = style === 'text';
  }

  /** What a command takes: `data` of its definition. Arguments that are not there are none. */
  arguments(data: Members | string | undefined, value: unknown): Record<string, unknown> {
    const given = value ?? emptyObject();
    if (typeof data === 'string') return this.value(data, given, '') as Record<string, unknown>;
    return this.#object(given, '', (members, done) => this.#members(data ?? {}, members, '', done));
  }

  /** A value of the type of that name; `path` says where it stands, '' at the top. */
  value(type: string, value: unknown, path: string): unknown {
    const { enums, structs, unions, alternates } = this.#schema;
    if (Object.hasOwn(INTEGERS, type)) return this.#integer(type, value, path);
    if (type.startsWith('[')) return this.#array(type.slice(1, -1), value, path);
    if (Object.hasOwn(enums, type)) return this.#enum(enums[type]!, value, path);
    if (Object.hasOwn(structs, type)) {
      return this.#object(value, path, (members, done) => this.#members(structs[type]!, members, path, done));
    }
    if (Object.hasOwn(unions, type)) {
      return this.#object(value, path, (members, done) => this.#union(unions[type]!, members, path, done));
    }
    if (Object.hasOwn(alternates, type)) return this.#alternate(type, alternates[type]!, value, path);
    return this.#plain(type, value, path);
  }

  #plain(type: string, value: unknown, path: string): unknown {
    switch (type) {
      case 'str':
        if (typeof value !== 'string') throw wrongType(path, 'string');
        return value;
      case 'bool':
        if (this.#text && typeof value === 'string') return onOff(value, path);
        if (typeof value !== 'boolean') throw wrongType(path, 'boolean');
        return value;
      case 'number': {
        const number = this.#text && typeof value === 'string' && value.trim() !== '' ? Number(value) : value;
        if (typeof number !== 'number' || !Number.isFinite(number)) throw wrongType(path, 'number');
        return number;
      }
      case 'null':
        if (value !== null) throw wrongType(path, 'null');
        return null;
      default:
        return value;
    }
  }

  #integer(type: string, given: unknown, path: string): number {
    const value = this.#text && typeof given === 'string' ? integerText(type, given, path) : given;
    if (value instanceof WideInteger) {
      if (type !== 'size' && type !== 'uint64' && !isInt64(value)) throw wrongInteger(type, path);
      // Beyond what is exact: whoever uses it refuses it.
      return Number(value.text);
    }
    if (typeof value !== 'number' || !Number.isInteger(value) || Math.abs(value) >= 2 ** 64) {
      throw wrongInteger(type, path);
    }
    const range = INTEGERS[type];
    if (range && (value < range[0] || value > range[1]))
      throw new QmpError(`Parameter '${local(path)}' expects ${type}_t`);
    return value;
  }

  #enum(values: readonly string[], value: unknown, path: string): string {
    if (typeof value !== 'string') throw wrongType(path, 'string');
    if (!values.includes(value)) throw new QmpError(`Parameter '${local(path)}' does not accept value '${value}'`);
    return value;
  }

  #array(element: string, value: unknown, path: string): unknown[] {
    if (!Array.isArray(value)) throw wrongType(path, 'array');
    return value.map((item, i) => this.value(element, item, this.#text ? `${path}.${i}` : `${path}[${i}]`));
  }

  #alternate(type: string, types: readonly string[], value: unknown, path: string): unknown {
    const kind = kindOf(value);
    const fits = types.find((name) => (name === 'str' ? 'string' : name === 'null' ? 'null' : 'object') === kind);
    if (fits === undefined) throw wrongType(local(path), type);
    return this.value(fits, value, path);
  }

  /** `fill` takes what it knows out of `members`; what is left then is nobody's. */
  #object(
    value: unknown,
    path: string,
    fill: (members: Map<string, unknown>, done: Record<string, unknown>) => void,
  ): Record<string, unknown> {
    if (!isObject(value)) throw wrongType(path, 'object');
    if (this.#depth >= DEPTH_MAX) throw new QmpError(`Parameters are nested more than ${DEPTH_MAX} levels deep`);
    const members = new Map<string, unknown>(Object.entries(value));
    const done = emptyObject() as Record<string, unknown>;
    this.#depth++;
    try {
      fill(members, done);
    } finally {
      this.#depth--;
    }
    const [extra] = members.keys();
    if (extra !== undefined) throw new QmpError(`Parameter '${join(path, extra)}' is unexpected`);
    return done;
  }

  #members(defined: Members, members: Map<string, unknown>, path: string, done: Record<string, unknown>): void {
    for (const [key, type] of Object.entries(defined)) {
      const optional = key.endsWith('?');
      const name = optional ? key.slice(0, -1) : key;
      const inner = join(path, name);
      if (!members.has(name)) {
        if (optional) continue;
        throw new QmpError(`Parameter '${inner}' is missing`);
      }
      done[name] = this.value(type, members.get(name), inner);
      members.delete(name);
    }
  }

  #union({ base, tag, branches }: Union, members: Map<string, unknown>, path: string, done: Record<string, unknown>) {
    this.#members(base, members, path, done);
    const branch = done[tag] as string;
    if (Object.hasOwn(branches, branch)) this.#members(branches[branch]!, members, path, done);
  }
}

function join(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`;
}

/** The last name of a path. Elements of arrays have none, which clients know as 'null'. */
function local(path: string): string {
  const name = path.slice(path.lastIndexOf('.') + 1);
  return name === '' || /\]$|^\d+$/.test(name) ? 'null' : name;
}

function wrongType(path: string, expected: string): QmpError {
  return new QmpError(`Invalid parameter type for '${path === '' ? 'null' : path}', expected: ${expected}`);
}

function wrongInteger(type: string, path: string): QmpError {
  return type.startsWith('uint') ? new QmpError(`Parameter '${path}' expects uint64`) : wrongType(path, 'integer');
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  return isObject(value) ? 'object' : typeof value;
}

function onOff(text: string, path: string): boolean {
  if (ON.has(text)) return true;
  if (OFF.has(text)) return false;
  throw new QmpError(`Parameter '${path}' expects 'on' or 'off'`);
}

/** 4096, 0x1000, -1; a size also 4k, 1.5M. */
function integerText(type: string, text: string, path: string): number {
  const plain = /^[+-]?(0[xX][0-9a-fA-F]+|\d+)$/.test(text) ? Number(text.replace(/^[+-]/, '')) : undefined;
  const negative = text.startsWith('-');
  const value = plain ?? (type === 'size' || type === 'bytes' ? suffixed(text) : undefined);
  if (type === 'size' && (value === undefined || negative)) {
    throw new QmpError(`Parameter '${path}' expects a non-negative number below 2^64`);
  }
  if (value === undefined) throw new QmpError(`Parameter '${path}' expects integer`);
  return negative ? -value : value;
}

function suffixed(text: string): number | undefined {
  const parts = /^(\d+(?:\.\d+)?)([bBkKmMgGtTpPeE])$/.exec(text);
  return parts ? Math.trunc(Number(parts[1]) * 1024 ** SUFFIXES.indexOf(parts[2]!.toUpperCase())) : undefined;
}
