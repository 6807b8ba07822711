/**
 * What the schema is made of: data, from which arguments are checked, command lines are read, `query-qmp-schema` is
 * answered and the types of handlers and clients come. A member whose name ends in '?' may be left out; `[x]` is an
 * array of x. Names and structure are those of QAPI, so that clients made for it fit.
 */

/** What stands on the wire, and in a handler, for the types that need no definition. */
export interface Builtins {
  str: string;
  int: number;
  int64: number;
  uint64: number;
  size: number;
  /** As int; on a command line also with a suffix: 64k. */
  bytes: number;
  uint32: number;
  uint16: number;
  uint8: number;
  number: number;
  bool: boolean;
  null: null;
  any: unknown;
}

/** By name: the name of a type. */
export type Members = Readonly<Record<string, string>>;

export interface Union {
  /** The member of `base`, an enumeration, that says which branch there is. */
  readonly tag: string;
  readonly base: Members;
  /** By value of the tag; a value that has none adds nothing. */
  readonly branches: Readonly<Record<string, Members>>;
}

export interface Command {
  /** Its own members, or the name of a struct or union. */
  readonly data?: Members | string;
  readonly returns?: string;
  readonly features?: readonly string[];
}

export interface Schema {
  readonly enums: Readonly<Record<string, readonly string[]>>;
  readonly structs: Readonly<Record<string, Members>>;
  readonly unions: Readonly<Record<string, Union>>;
  /** One type for each kind of JSON value that there may be. */
  readonly alternates: Readonly<Record<string, readonly string[]>>;
  readonly commands: Readonly<Record<string, Command>>;
  readonly events: Readonly<Record<string, Members>>;
}

/** A part of a schema. */
export type Part = Partial<Schema>;

export function part<const P extends Part>(definitions: P): P {
  return definitions;
}

type Flat<T> = { [K in keyof T]: T[K] };

/** The TypeScript type of a type by name. */
export type Named<S extends Schema, T> = T extends keyof Builtins
  ? Builtins[T]
  : T extends `[${infer E}]`
    ? readonly Named<S, E>[]
    : T extends keyof S['enums']
      ? S['enums'][T][number]
      : T extends keyof S['structs']
        ? Fields<S, S['structs'][T]>
        : T extends keyof S['unions']
          ? UnionFields<S, S['unions'][T]>
          : T extends keyof S['alternates']
            ? Named<S, S['alternates'][T][number]>
            : Readonly<Record<string, unknown>>;

export type Fields<S extends Schema, M> = Flat<
  {
    readonly [K in keyof M as K extends `${string}?` ? never : K]: Named<S, M[K]>;
  } & {
    readonly [K in keyof M as K extends `${infer N}?` ? N : never]?: Named<S, M[K]>;
  }
>;

type UnionFields<S extends Schema, U extends Union> = {
  [B in keyof U['branches']]: Fields<S, Omit<U['base'], U['tag']>> & { readonly [K in U['tag']]: B } & Fields<
      S,
      U['branches'][B]
    >;
}[keyof U['branches']];
