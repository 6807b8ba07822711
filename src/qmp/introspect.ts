/** The schema as `query-qmp-schema` shows it. Types that are no command, event or builtin have numbers for names. */
import { emptyObject, type JsonObject } from './json.ts';
import type { Members, Schema, Union } from './schema/types.ts';

const BUILTINS: Readonly<Record<string, string>> = {
  str: 'string',
  int: 'int',
  number: 'number',
  bool: 'boolean',
  null: 'null',
  any: 'value',
};

/** Who reads the schema has no use for the width of an integer. */
const INTEGERS = new Set(['int64', 'uint64', 'size', 'bytes', 'uint32', 'uint16', 'uint8']);

export function introspect(schema: Schema): JsonObject[] {
  return new Introspection(schema).all();
}

class Introspection {
  readonly #schema: Schema;
  readonly #numbers = new Map<string, string>();
  /** In the order of their numbers. */
  readonly #types: JsonObject[] = [];
  readonly #plain = new Map<string, JsonObject>();

  constructor(schema: Schema) {
    this.#schema = schema;
  }

  all(): JsonObject[] {
    const { commands, events } = this.#schema;
    // Type 0 is what has no members.
    this.#numbered('{}', () => ({ 'meta-type': 'object', members: [] }));
    const top = [
      ...Object.entries(commands).map(([name, { data, returns, features }]) => ({
        name,
        'meta-type': 'command',
        'arg-type': this.#data(`${name}-arg`, data),
        'ret-type': returns === undefined ? '0' : this.#type(returns),
        ...(features ? { features } : {}),
      })),
      ...Object.entries(events).map(([name, members]) => ({
        name,
        'meta-type': 'event',
        'arg-type': this.#data(`${name}-arg`, members),
      })),
    ];
    return [...top, ...this.#types, ...this.#plain.values()];
  }

  #data(name: string, data: Members | string | undefined): string {
    if (data === undefined) return '0';
    if (typeof data === 'string') return this.#type(data);
    if (Object.keys(data).length === 0) return '0';
    return this.#numbered(`:${name}`, () => ({ 'meta-type': 'object', members: this.#members(data) }));
  }

  #type(type: string): string {
    const { enums, structs, unions, alternates } = this.#schema;
    if (type.startsWith('[')) {
      const element = this.#type(type.slice(1, -1));
      const name = `[${element}]`;
      this.#plain.set(name, { name, 'meta-type': 'array', 'element-type': element });
      return name;
    }
    if (Object.hasOwn(enums, type)) {
      const values = [...enums[type]!];
      return this.#numbered(type, () => ({
        'meta-type': 'enum',
        members: values.map((name) => ({ name })),
        values,
      }));
    }
    if (Object.hasOwn(structs, type)) {
      const members = structs[type]!;
      if (Object.keys(members).length === 0) return '0';
      return this.#numbered(type, () => ({ 'meta-type': 'object', members: this.#members(members) }));
    }
    if (Object.hasOwn(unions, type)) return this.#union(type, unions[type]!);
    if (Object.hasOwn(alternates, type)) {
      return this.#numbered(type, () => ({
        'meta-type': 'alternate',
        members: alternates[type]!.map((name) => ({ type: this.#type(name) })),
      }));
    }
    return this.#builtin(type);
  }

  #builtin(type: string): string {
    const name = INTEGERS.has(type) ? 'int' : Object.hasOwn(BUILTINS, type) ? type : 'any';
    this.#plain.set(name, { name, 'meta-type': 'builtin', 'json-type': BUILTINS[name]! });
    return name;
  }

  #union(type: string, { base, tag, branches }: Union): string {
    return this.#numbered(type, () => {
      const values = this.#schema.enums[base[tag]!] ?? [];
      return {
        'meta-type': 'object',
        members: this.#members(base),
        tag,
        variants: values.map((value) => ({
          case: value,
          type: Object.hasOwn(branches, value) ? this.#data(`${type}-${value}`, branches[value]) : '0',
        })),
      };
    });
  }

  #members(members: Members): JsonObject[] {
    return Object.entries(members).map(([key, type]) => {
      const optional = key.endsWith('?');
      const name = optional ? key.slice(0, -1) : key;
      return { name, ...(optional ? { default: null } : {}), type: this.#type(type) };
    });
  }

  /** The number of a type; its definition is made after it has one, since types may hold themselves. */
  #numbered(key: string, define: () => object): string {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const name = String(this.#numbers.size);
    this.#numbers.set(key, name);
    const slot = this.#types.push(emptyObject()) - 1;
    this.#types[slot] = { name, ...define() } as JsonObject;
    return name;
  }
}
