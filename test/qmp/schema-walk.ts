/** What a daemon says that its commands take: places for values, and arguments in which all but one place is right. */
import type { Fields, Json, Peer } from './conversation.ts';

/** Stands where the value of a place comes. */
const HOLE = '@the place@';

/** A place in the arguments of a command. */
export interface Place {
  readonly command: string;
  /** As errors name it. */
  readonly path: string;
  /** Kinds of JSON that fit: string, integer, number, boolean, object, array, null; value for any. */
  readonly kinds: readonly string[];
  readonly optional: boolean;
  /** Arguments with `json` in this place. */
  fill(json: string): string;
  /** Arguments without it. */
  without(): Fields | undefined;
  /** Arguments with a member beside it that nobody knows. */
  beside(): Fields;
}

type Wrap = (value: Json) => Json;

const KINDS: Readonly<Record<string, string>> = {
  ...{ str: 'string', int: 'integer', number: 'number', bool: 'boolean', null: 'null', any: 'value' },
};

/** Names whose values have to be something in particular. */
const NAMES: Readonly<Record<string, Json>> = {
  ...{
    'node-name': 'n0',
    device: 'n0',
    node: 'n0',
    target: 'n1',
    parent: 'n0',
    file: 'n0',
    image: 'n0',
    overlay: 'n1',
  },
  ...{
    driver: 'null-co',
    name: 'b0',
    filename: '$DIR/file',
    path: '$DIR/none',
    url: 'http://127.0.0.1:1/x',
    size: 65_536,
  },
  ...{ 'qom-type': 'throttle-group', port: '1', host: '127.0.0.1', 'snapshot-file': '$DIR/overlay' },
};

export class SchemaWalk {
  readonly #types: ReadonlyMap<string, Fields>;
  readonly commands: readonly string[];

  private constructor(schema: readonly Fields[]) {
    this.#types = new Map(schema.map((type) => [String(type.name), type]));
    this.commands = schema.filter((type) => type['meta-type'] === 'command').map(({ name }) => String(name));
  }

  static async of(daemon: Peer): Promise<SchemaWalk> {
    return new SchemaWalk((await daemon.execute('query-qmp-schema', {})).return as readonly Fields[]);
  }

  *places(command: string): Generator<Place> {
    const type = String(this.#types.get(command)!['arg-type']);
    yield* this.#object(command, type, '', (value) => value, new Set());
  }

  *#object(command: string, type: string, path: string, wrap: Wrap, seen: ReadonlySet<string>): Generator<Place> {
    if (seen.has(type)) return;
    const inside = new Set([...seen, type]);
    const { members, variants = [], tag } = this.#types.get(type)! as unknown as ObjectType;
    for (const branch of variants.length > 0 ? variants : [undefined]) {
      const own = branch ? (this.#types.get(branch.type)! as unknown as ObjectType).members : [];
      const base = { ...this.#sample(members), ...this.#sample(own), ...(branch ? { [tag!]: branch.case } : {}) };
      for (const member of branch === undefined || branch === variants[0] ? [...members, ...own] : own) {
        yield* this.#member(command, member, base, path, wrap, inside);
      }
    }
  }

  *#member(
    command: string,
    { name, type, ...more }: Member,
    base: Fields,
    path: string,
    wrap: Wrap,
    seen: ReadonlySet<string>,
  ): Generator<Place> {
    const inner = path === '' ? name : `${path}.${name}`;
    const put: Wrap = (value) => wrap({ ...base, [name]: value });
    const optional = 'default' in more;
    yield {
      command,
      path: inner,
      kinds: this.#kinds(type),
      optional,
      fill: (json) => JSON.stringify(put(HOLE)).replace(JSON.stringify(HOLE), () => json),
      without: () => {
        const { [name]: _, ...rest } = base;
        return optional ? undefined : (wrap(rest) as Fields);
      },
      beside: () => wrap({ ...base, nonsense: 1 }) as Fields,
    };
    yield* this.#inside(command, type, inner, put, seen);
  }

  *#inside(command: string, type: string, path: string, put: Wrap, seen: ReadonlySet<string>): Generator<Place> {
    const info = this.#types.get(type)!;
    if (info['meta-type'] === 'object') yield* this.#object(command, type, path, put, seen);
    else if (info['meta-type'] === 'array') {
      const element = String(info['element-type']);
      yield* this.#inside(command, element, `${path}[0]`, (value) => put([value]), seen);
    } else if (info['meta-type'] === 'alternate') {
      for (const member of info.members as readonly Fields[]) {
        yield* this.#inside(command, String(member.type), path, put, seen);
      }
    }
  }

  #kinds(type: string): string[] {
    const info = this.#types.get(type)!;
    switch (info['meta-type']) {
      case 'builtin':
        return [KINDS[type] ?? 'value'];
      case 'enum':
        return ['string'];
      case 'alternate':
        return (info.members as readonly Fields[]).flatMap((member) => this.#kinds(String(member.type)));
      default:
        return [String(info['meta-type'])];
    }
  }

  #sample(members: readonly Member[]): Fields {
    return Object.fromEntries(
      members.filter((member) => !('default' in member)).map(({ name, type }) => [name, this.#value(type, name)]),
    );
  }

  #value(type: string, name: string): Json {
    const info = this.#types.get(type)!;
    switch (info['meta-type']) {
      case 'enum': {
        const values = info.values as readonly Json[];
        return values.find((value) => value === NAMES[name]) ?? values[0]!;
      }
      case 'array':
        return [];
      case 'object': {
        const { members, variants = [], tag } = info as unknown as ObjectType;
        const base = this.#sample(members);
        const branch = variants.find((one) => one.case === base[tag ?? '']);
        const own = branch ? this.#sample((this.#types.get(branch.type)! as unknown as ObjectType).members) : {};
        return { ...base, ...own };
      }
      case 'alternate':
        return NAMES[name] ?? 'n0';
      default:
        return NAMES[name] ?? { str: 'n0', int: 1, number: 1, bool: false, null: null, any: 1 }[type] ?? null;
    }
  }
}

interface Member {
  readonly name: string;
  readonly type: string;
  readonly default?: Json;
}

interface ObjectType {
  readonly members: readonly Member[];
  readonly variants?: readonly { readonly case: string; readonly type: string }[];
  readonly tag?: string;
}
