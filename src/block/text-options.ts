/**
 * Options of nodes as people write them, `driver=qcow2,file.filename=a.img,l2-cache-size=1M`: a tree of strings first,
 * and then, with what each driver says of its options, values.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { parseBytes } from '../base/units.ts';
import type { Driver, OptionSpec } from './driver.ts';
import type { NodeOptions } from './graph.ts';
import { COMMON_OPTIONS, isGroup } from './options.ts';
import { driverByName } from './registry.ts';

/** Strings and trees of them, by name. */
export type TextTree = { [name: string]: string | TextTree };

/** Deeper than any graph; each level is one recursion. */
const DEPTH_MAX = 1024;

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not use the options: ${why}`);
}

/** Reads `name=value,name.name=value`; a comma in a value is written twice. EINVAL. */
export function parseTextOptions(text: string): TextTree {
  const tree = emptyTree();
  for (const part of splitOptions(text)) {
    const equals = part.indexOf('=');
    if (equals <= 0) throw refusal(`'${part}' is not of the form name=value`);
    put(tree, part.slice(0, equals).split('.'), part.slice(equals + 1));
  }
  return tree;
}

/** No names that objects come with. */
function emptyTree(): TextTree {
  return Object.create(null) as TextTree;
}

/** The parts of `a=1,b=2`; a comma in a part is written twice. */
export function splitOptions(text: string): string[] {
  const parts: string[] = [];
  let part = '';
  for (let i = 0; i < text.length; i++) {
    const char = text[i]!;
    if (char !== ',') part += char;
    else if (text[i + 1] === ',') {
      part += ',';
      i++;
    } else {
      parts.push(part);
      part = '';
    }
  }
  if (part !== '') parts.push(part);
  return parts;
}

function put(tree: TextTree, path: readonly string[], value: string): void {
  const name = path.join('.');
  if (path.length > DEPTH_MAX) throw refusal(`'${name.slice(0, 40)}...' is nested too deeply`);
  let at = tree;
  for (const step of path.slice(0, -1)) {
    if (step === '') throw refusal(`'${name}' is not a name`);
    const next = at[step] ?? emptyTree();
    if (typeof next === 'string') throw refusal(`'${step}' is both a value and the beginning of '${name}'`);
    at[step] = next;
    at = next;
  }
  const last = path.at(-1)!;
  if (last === '') throw refusal(`'${name}' is not a name`);
  if (at[last] !== undefined) throw refusal(`'${name}' is given twice`);
  at[last] = value;
}

/** The options of a node, of the types that its driver and those of its children say. Every node names its driver. */
export function typedOptions(tree: TextTree): NodeOptions {
  const { driver: name } = tree;
  if (typeof name !== 'string') throw refusal("a node without 'driver'");
  const driver = driverByName(name);
  const result: Record<string, unknown> = { driver: name };
  for (const [option, value] of Object.entries(tree)) {
    if (option === 'driver') continue;
    const own = Object.hasOwn(driver.options, option) ? driver.options[option] : undefined;
    if (typeof value !== 'string') {
      if (own?.type === 'list') result[option] = typedTree(option, value, own);
      else if (Object.hasOwn(driver.children ?? {}, option)) result[option] = typedOptions(value);
      else if (isGroup(driver, option)) Object.assign(result, typedMembers(driver, option, value));
      else result[option] = typedGroup(option, value);
      continue;
    }
    result[option] = typedValue(option, value, own ?? commonOption(option));
  }
  return result as NodeOptions;
}

function commonOption(name: string): OptionSpec | undefined {
  return Object.hasOwn(COMMON_OPTIONS, name) ? COMMON_OPTIONS[name] : undefined;
}

/** A driver's own options with a dot in their names: encrypt.key. */
function typedMembers(driver: Driver, group: string, tree: TextTree): Record<string, unknown> {
  const entries = Object.entries(tree).map(([member, value]) => {
    const name = `${group}.${member}`;
    if (typeof value !== 'string') throw refusal(`unknown option '${name}.${Object.keys(value)[0]}'`);
    return [name, typedValue(name, value, Object.hasOwn(driver.options, name) ? driver.options[name] : undefined)];
  });
  return Object.fromEntries(entries);
}

/** Elements by their numbers, members by their names. What nobody knows is refused by name when the node opens. */
function typedTree(name: string, value: string | TextTree, spec: OptionSpec | undefined): unknown {
  if (typeof value === 'string') return typedValue(name, value, spec);
  const entries = Object.entries(value);
  const part = (own: string, one: string | TextTree, inner: OptionSpec | undefined): unknown =>
    typedTree(`${name}.${own}`, one, inner);
  if (spec?.type !== 'list') {
    const members = spec?.members ?? {};
    return Object.fromEntries(
      entries.map(([own, one]) => [own, part(own, one, Object.hasOwn(members, own) ? members[own] : undefined)]),
    );
  }
  const list = entries.sort(([a], [b]) => Number(a) - Number(b));
  const wrong = list.find(([own], i) => own !== String(i));
  if (wrong) throw refusal(`'${name}.${wrong[0]}' is not the next element of a list`);
  return list.map(([own, one]) => part(own, one, spec.element));
}

/** cache.direct and cache.no-flush. */
function typedGroup(group: string, tree: TextTree): Record<string, unknown> {
  const entries = Object.entries(tree).map(([name, value]) => {
    if (typeof value !== 'string') throw refusal(`unknown option '${group}.${name}'`);
    return [name, group === 'cache' ? booleanOf(`${group}.${name}`, value) : value] as const;
  });
  return Object.fromEntries(entries);
}

/** A value of the type that `spec` says. EINVAL. */
export function typedValue(name: string, value: string, spec: OptionSpec | undefined): unknown {
  switch (spec?.type) {
    case 'boolean':
      return booleanOf(name, value);
    case 'size': {
      const bytes = parseBytes(value);
      if (bytes === undefined) throw refusal(`'${name}' is '${value}', not a size such as 512, 64K or 1G`);
      return bytes;
    }
    case 'number': {
      const number = value.trim() === '' ? Number.NaN : Number(value);
      if (!Number.isFinite(number)) throw refusal(`'${name}' is '${value}', not a number`);
      return number;
    }
    default:
      // What nobody knows is refused by name when the node opens.
      return value;
  }
}

function booleanOf(name: string, value: string): boolean {
  if (value === 'on' || value === 'yes' || value === 'true') return true;
  if (value === 'off' || value === 'no' || value === 'false') return false;
  throw refusal(`'${name}' is '${value}', not on or off`);
}
