/** The whole schema, but for what the drivers and the kinds of objects add: see ../../daemon/schema.ts. */
import { BLOCK } from './block.ts';
import { CONTROL } from './control.ts';
import { EXPORTS } from './exports.ts';
import { JOBS } from './jobs.ts';
import type { Fields, Named, Schema } from './types.ts';

export const SCHEMA = {
  enums: { ...CONTROL.enums, ...BLOCK.enums, ...EXPORTS.enums, ...JOBS.enums },
  structs: { ...CONTROL.structs, ...BLOCK.structs, ...EXPORTS.structs, ...JOBS.structs },
  unions: { ...CONTROL.unions, ...EXPORTS.unions, ...JOBS.unions },
  alternates: { ...BLOCK.alternates },
  commands: { ...CONTROL.commands, ...BLOCK.commands, ...EXPORTS.commands, ...JOBS.commands },
  events: { ...CONTROL.events, ...BLOCK.events, ...EXPORTS.events, ...JOBS.events },
} as const satisfies Schema;

type S = typeof SCHEMA;

export type CommandName = keyof S['commands'];
export type EventName = keyof S['events'];

/** A type of the schema by its name. */
export type Qapi<T> = Named<S, T>;

type Data<C> = C extends { readonly data: infer D } ? (D extends string ? Named<S, D> : Fields<S, D>) : object;
/** Of a command that answers nothing: whatever its handler has, it is not sent. */
type Returns<C> = C extends { readonly returns: infer R } ? Named<S, R> : unknown;

/** What a command takes, and what it answers. */
export type Arguments<N extends CommandName> = Data<S['commands'][N]>;
/** The arguments of a call: none at all where nothing has to be said. */
export type Given<N extends CommandName> =
  Record<never, never> extends Arguments<N> ? [args?: Arguments<N>] : [args: Arguments<N>];
export type Result<N extends CommandName> = Returns<S['commands'][N]>;
export type EventData<N extends EventName> = Fields<S, S['events'][N]>;
