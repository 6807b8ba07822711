/** Trees of nodes as commands take them: the library's, in the form that the schema has. */
import type { BlockdevOptions } from '../lib/options.ts';
import type { CommandName, Given } from '../qmp/schema/schema.ts';

/** The first part of a name with a dot in it. */
type Group<Name> = Name extends `${infer First}.${string}` ? First : never;

type Members<T, First extends string> = {
  readonly [Name in keyof T as Name extends `${First}.${infer Rest}` ? Rest : never]: T[Name];
};

/** Options whose names have a dot are an object of their own: `encrypt: { key }` for `'encrypt.key'`. */
type InObjects<T> = T extends { readonly driver: string }
  ? {
      readonly [Name in keyof T as Name extends `${string}.${string}` ? never : Name]: InObjects<T[Name]>;
    } & { readonly [First in Group<keyof T>]?: Members<T, First> }
  : T;

/** A tree of nodes whose root has a name. */
export type NamedNode = InObjects<BlockdevOptions> & {
  readonly 'node-name': string;
  /** false: another process has the image as yet (docs/DAEMON.md). Default true. */
  readonly active?: boolean;
};

interface TreeCommands {
  'blockdev-add': NamedNode;
  'blockdev-reopen': { readonly options: readonly NamedNode[] };
}

/** What a program gives with a command: drivers add to the schema what nodes take, and their types here. */
export type GivenHere<N extends CommandName> = N extends keyof TreeCommands ? [args: TreeCommands[N]] : Given<N>;
