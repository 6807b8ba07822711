/** Objects that options name by their id: secrets, credentials, and what else a table of types says. */
import { BlockError, Errno } from '../../base/errors.ts';
import { type ObjectKind, type ObjectType, objectOptions, wrong } from './object-type.ts';
import { OBJECT_TYPES, type ObjectOptions } from './types.ts';

/** Objects in one store. */
const MAX_OBJECTS = 1024;
const ID = /^[A-Za-z][A-Za-z0-9._-]*$/;

interface StoredObject {
  readonly type: ObjectType;
  /** What it was made of, or is by now, without what is secret. */
  options: Readonly<Record<string, unknown>>;
  /** Undefined while it is being made. */
  value: { readonly own: unknown } | undefined;
}

/** What a list of objects shows of one. */
export interface ObjectInfo {
  readonly id: string;
  readonly type: string;
  /** Without secrets. */
  readonly options: Readonly<Record<string, unknown>>;
}

/**
 * Objects by id, in the program's thread. `open`, `create` and whatever else takes options that name objects gets the
 * store with them.
 *
 * ```ts
 * const objects = new ObjectStore();
 * await objects.add({ 'qom-type': 'secret', id: 'sec0', file: 'disk.key' });
 * const disk = await open({ driver: 'qcow2', 'encrypt.key-secret': 'sec0', file: ... }, { objects });
 * ```
 */
export class ObjectStore {
  readonly #types: ReadonlyMap<string, ObjectType>;
  readonly #objects = new Map<string, StoredObject>();

  /** @internal `types`: of a program that has more than those that come along. */
  constructor(types: readonly ObjectType[] = OBJECT_TYPES) {
    this.#types = new Map(types.map((type) => [type.name, type]));
  }

  /** @internal */
  get types(): readonly ObjectType[] {
    return [...this.#types.values()];
  }

  /** In the order they were added. */
  list(): ObjectInfo[] {
    return [...this.#objects].map(([id, { type, options }]) => ({ id, type: type.name, options }));
  }

  /** Makes an object. EINVAL names the option that is wrong; EEXIST when the id is taken. */
  add(options: ObjectOptions): Promise<void> {
    return this.addTree(options as unknown as Readonly<Record<string, unknown>>, false);
  }

  /** @internal Makes one of a tree that nobody has looked at; with `text`, its values are strings still. */
  async addTree(tree: Readonly<Record<string, unknown>>, text: boolean): Promise<void> {
    const { 'qom-type': name, id, ...rest } = tree;
    const type = this.#typeOf(name);
    if (id === undefined) throw wrong("Parameter 'id' is missing");
    if (typeof id !== 'string') throw wrong("Invalid parameter type for 'id', expected: string");
    if (!ID.test(id)) {
      throw wrong("Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a letter");
    }
    const options = objectOptions(type.options, rest, text);
    if (this.#objects.has(id)) throw new BlockError(Errno.EEXIST, `An object with id '${id}' exists already`);
    if (this.#objects.size >= MAX_OBJECTS) {
      throw new BlockError(Errno.ENOSPC, `Could not add the object '${id}': there are ${MAX_OBJECTS} already`);
    }
    const entry: StoredObject = { type, options: shownOptions(type, options), value: undefined };
    this.#objects.set(id, entry);
    try {
      entry.value = { own: await type.create(options, this, id) };
    } catch (error) {
      this.#objects.delete(id);
      throw error;
    }
  }

  #typeOf(name: unknown): ObjectType {
    if (name === undefined) throw wrong("Parameter 'qom-type' is missing");
    if (typeof name !== 'string') throw wrong("Invalid parameter type for 'qom-type', expected: string");
    const type = this.#types.get(name);
    if (!type) throw wrong(`Parameter 'qom-type' does not accept value '${name}'`);
    return type;
  }

  /** Takes an object away; who has opened something with it keeps that. ENOENT; EBUSY while it may not go. */
  async remove(id: string): Promise<void> {
    const entry = this.#objects.get(id);
    if (!entry?.value) throw new BlockError(Errno.ENOENT, `object '${id}' not found`);
    await entry.type.remove?.(entry.value.own, id);
    // May interleave: another call that was as quick.
    if (this.#objects.get(id) === entry) this.#objects.delete(id);
  }

  /** @internal What a property is now. */
  property(id: string, property: string): unknown {
    const { type, options, value } = this.#made(id);
    return type.get?.(value.own, property) ?? options[property];
  }

  /** @internal ENOENT, EINVAL; EPERM for one that cannot change. */
  async setProperty(id: string, property: string, to: unknown): Promise<void> {
    const entry = this.#made(id);
    const { type, value } = entry;
    if (!type.set) throw new BlockError(Errno.EPERM, 'Insufficient permission to perform this operation');
    await type.set(value.own, property, to);
    entry.options = { ...entry.options, [property]: to };
  }

  #made(id: string): StoredObject & { readonly value: { readonly own: unknown } } {
    const entry = this.#objects.get(id);
    if (!entry?.value) throw new BlockError(Errno.ENOENT, `object '${id}' not found`);
    return entry as StoredObject & { readonly value: { readonly own: unknown } };
  }

  /** @internal ENOENT; EINVAL for one of another kind. */
  get<T>(id: string, kind: ObjectKind<T>): T {
    const entry = this.#objects.get(id);
    if (!entry?.value) throw new BlockError(Errno.ENOENT, `No ${kind.noun} with id '${id}'`);
    if (entry.type.kind !== kind) throw wrong(`Object with id '${id}' is not ${kind.what}`);
    return entry.value.own as T;
  }
}

function shownOptions(type: ObjectType, options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options).filter(([name]) => type.options[name]!.type !== 'secret'));
}
