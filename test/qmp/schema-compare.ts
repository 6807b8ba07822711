/**
 * Two answers to `query-qmp-schema`, compared by structure: types have names that mean nothing, so commands and events
 * are followed into what they are made of.
 */
import type { Fields } from './conversation.ts';

type Entries = ReadonlyMap<string, Fields>;

interface Member {
  readonly name: string;
  readonly type: string;
  readonly default?: null;
}

/**
 * By where it is, what is different: `-x` only they have, `+x` only we have, else what it is here and there. A type
 * that both have in several places is told of at the first.
 */
export function differences(ours: readonly Fields[], theirs: readonly Fields[]): ReadonlyMap<string, string> {
  return new Comparison(ours, theirs).found;
}

class Comparison {
  readonly found = new Map<string, string>();
  readonly #ours: Entries;
  readonly #theirs: Entries;
  readonly #seen = new Set<string>();

  constructor(ours: readonly Fields[], theirs: readonly Fields[]) {
    const byName = (all: readonly Fields[]): Entries => new Map(all.map((entry) => [String(entry.name), entry]));
    this.#ours = byName(ours);
    this.#theirs = byName(theirs);
    for (const kind of ['command', 'event']) this.#top(kind);
  }

  #top(kind: string): void {
    const ofKind = (all: Entries): Entries => new Map([...all].filter(([, entry]) => entry['meta-type'] === kind));
    const [ours, theirs] = [ofKind(this.#ours), ofKind(this.#theirs)];
    this.#names(`${kind}s`, [...ours.keys()], [...theirs.keys()]);
    for (const [name, entry] of ours) {
      const other = theirs.get(name);
      if (!other) continue;
      this.#type(entry['arg-type'], other['arg-type'], name);
      if (kind === 'command') this.#type(entry['ret-type'], other['ret-type'], `${name} ->`);
      this.#same(`${name} features`, features(entry), features(other));
      this.#same(`${name} oob`, entry['allow-oob'] === true, other['allow-oob'] === true);
    }
  }

  #type(our: unknown, their: unknown, path: string): void {
    const pair = `${our} ${their}`;
    if (this.#seen.has(pair)) return;
    this.#seen.add(pair);
    const [entry, other] = [this.#ours.get(String(our))!, this.#theirs.get(String(their))!];
    const [kind, otherKind] = [kindOf(entry), kindOf(other)];
    if (kind !== otherKind) this.#same(path, kind, otherKind);
    else if (kind === 'array') this.#type(entry['element-type'], other['element-type'], `${path}[]`);
    else if (kind === 'enum') this.#names(path, entry.values as string[], other.values as string[]);
    else if (kind === 'alternate') this.#alternate(entry, other, path);
    else if (kind === 'object') this.#object(entry, other, path);
  }

  #alternate(entry: Fields, other: Fields, path: string): void {
    const [ours, theirs] = [byKind(entry, this.#ours), byKind(other, this.#theirs)];
    this.#names(path, [...ours.keys()], [...theirs.keys()]);
    for (const [kind, type] of ours) if (theirs.has(kind)) this.#type(type, theirs.get(kind), path);
  }

  #object(entry: Fields, other: Fields, path: string): void {
    const [ours, theirs] = [membersOf(entry), membersOf(other)];
    this.#names(path, [...ours.keys()], [...theirs.keys()]);
    for (const [name, member] of ours) {
      const its = theirs.get(name);
      if (!its) continue;
      this.#same(`${path}.${name}`, needed(member), needed(its));
      this.#type(member.type, its.type, `${path}.${name}`);
    }
    this.#same(`${path} tag`, entry.tag ?? 'none', other.tag ?? 'none');
    const branches = branchesOf(other);
    for (const [value, type] of branchesOf(entry)) {
      if (branches.has(value)) this.#type(type, branches.get(value), `${path}(${value})`);
    }
  }

  #names(path: string, ours: readonly string[], theirs: readonly string[]): void {
    const less = theirs.filter((one) => !ours.includes(one)).sort();
    const more = ours.filter((one) => !theirs.includes(one)).sort();
    const told = [...less.map((one) => `-${one}`), ...more.map((one) => `+${one}`)];
    if (told.length > 0) this.found.set(path, told.join(' '));
  }

  #same(path: string, our: unknown, their: unknown): void {
    if (our !== their) this.found.set(path, `${our}, there ${their}`);
  }
}

function kindOf(entry: Fields): string {
  return String(entry['meta-type'] === 'builtin' ? entry['json-type'] : entry['meta-type']);
}

function byKind(entry: Fields, all: Entries): ReadonlyMap<string, string> {
  const members = entry.members as unknown as readonly { readonly type: string }[];
  return new Map(members.map(({ type }) => [kindOf(all.get(type)!), type]));
}

function membersOf(entry: Fields): ReadonlyMap<string, Member> {
  return new Map((entry.members as unknown as readonly Member[]).map((member) => [member.name, member]));
}

function branchesOf(entry: Fields): ReadonlyMap<string, string> {
  const variants = (entry.variants ?? []) as unknown as readonly { readonly case: string; readonly type: string }[];
  return new Map(variants.map((variant) => [variant.case, variant.type]));
}

function needed(member: Member): string {
  return 'default' in member ? 'optional' : 'required';
}

function features(entry: Fields): string {
  return ((entry.features ?? []) as readonly string[]).join(' ');
}
