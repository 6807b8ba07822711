/** Objects as a tree of paths and properties: what `qom-*` shows of them. */
import type { ObjectOption, ObjectType } from '../../lib/objects/object-type.ts';
import type { ObjectInfo, ObjectStore } from '../../lib/objects/store.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import type { Chardevs } from '../chardev/chardevs.ts';

type Property = Qapi<'ObjectPropertyInfo'>;

const TYPE: Property = { name: 'type', type: 'string' };

export class Qom {
  readonly #objects: ObjectStore;
  readonly #chardevs: Pick<Chardevs, 'kinds'>;

  constructor(objects: ObjectStore, chardevs: Pick<Chardevs, 'kinds'>) {
    this.#objects = objects;
    this.#chardevs = chardevs;
  }

  list(path: string): Property[] {
    if (path === '/' || path === '') {
      return [TYPE, { name: 'objects', type: 'child<container>' }, { name: 'chardevs', type: 'child<container>' }];
    }
    if (path === '/objects') {
      return [TYPE, ...this.#objects.list().map(({ id, type }) => ({ name: id, type: `child<${type}>` }))];
    }
    if (path === '/chardevs') {
      return [TYPE, ...this.#chardevs.kinds().map(({ id, kind }) => ({ name: id, type: `child<chardev-${kind}>` }))];
    }
    return this.properties(this.#find(path).type);
  }

  get(path: string, property: string): unknown {
    const { id, type } = this.#find(path);
    if (property === 'type') return type;
    const spec = this.#spec(type, property);
    if (spec.type === 'secret') throw new QmpError(`Insufficient permission to perform this operation`);
    return this.#objects.property(id, property) ?? emptyValue(spec);
  }

  async set(path: string, property: string, value: unknown): Promise<void> {
    const { id, type } = this.#find(path);
    if (property === 'type') throw new QmpError(`Property '${type}.type' is not writable`);
    this.#spec(type, property);
    await this.#objects.setProperty(id, property, value);
  }

  /** Of each path its properties; those that nobody may read without what they are. */
  listGet(paths: readonly string[]): Qapi<'ObjectPropertiesValues'>[] {
    return paths.map((path) => ({ properties: this.list(path).map((property) => this.#withValue(path, property)) }));
  }

  #withValue(path: string, { name, type }: Property): Qapi<'ObjectPropertyValue'> {
    const object = this.#objects.list().find(({ id }) => id === idOf(path));
    const readable = object && (name === 'type' || this.#spec(object.type, name).type !== 'secret');
    return { name, type, ...(readable ? { value: this.get(path, name) } : {}) };
  }

  types(implemented: string | undefined, abstract: boolean): Qapi<'ObjectTypeInfo'>[] {
    const known = implemented === undefined || implemented === 'object' || implemented === 'user-creatable';
    const names = this.#objects.types.map(({ name }) => name);
    if (!known && !names.includes(implemented)) return [];
    const concrete = (known ? names : [implemented]).map((name) => ({ name, parent: 'object' }));
    return abstract && known ? [...concrete, { name: 'object', abstract: true }] : concrete;
  }

  properties(name: string): Property[] {
    const options = Object.entries(this.#type(name).options);
    return [TYPE, ...options.map(([option, spec]) => ({ name: option, type: typeName(name, option, spec) }))];
  }

  #type(name: string): ObjectType {
    const type = this.#objects.types.find((one) => one.name === name);
    if (!type) throw new QmpError(`Class '${name}' not found`, 'DeviceNotFound');
    return type;
  }

  #spec(type: string, property: string): ObjectOption {
    const { options } = this.#type(type);
    if (Object.hasOwn(options, property)) return options[property]!;
    throw new QmpError(`Property '${type}.${property}' not found`);
  }

  #find(path: string): ObjectInfo {
    const id = idOf(path);
    const found = this.#objects.list().find((object) => object.id === id);
    if (!found) throw new QmpError(`Device '${path}' not found`, 'DeviceNotFound');
    return found;
  }
}

/** By its whole path, or the end of it. */
function idOf(path: string): string {
  return path.replace(/^(\/?objects)?\//, '');
}

function typeName(type: string, option: string, { type: kind, values }: ObjectOption): string {
  if (values) return `${type}-${option}`;
  if (kind === 'integer' || kind === 'size') return 'int';
  if (kind === 'boolean') return 'bool';
  return kind === 'any' ? 'value' : 'string';
}

function emptyValue({ type, values }: ObjectOption): unknown {
  if (type === 'integer' || type === 'size') return 0;
  if (type === 'boolean') return false;
  return values?.[0] ?? '';
}
