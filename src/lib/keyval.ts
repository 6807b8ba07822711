/**
 * Trees as QEMU's tools write them on command lines: `type=unix,addr.path=/run/x,rules.0.match=*`. A comma in a value
 * is written twice, numbers from 0 on make a list, and what is given twice is what it was given last.
 */
import { BlockError, Errno } from '../base/errors.ts';
import { splitOptions } from '../block/text-options.ts';

export type KeyvalTree = { readonly [name: string]: KeyvalValue };
export type KeyvalValue = string | KeyvalTree | readonly KeyvalValue[];

type Branch = Map<string, string | Branch>;

const DEPTH_MAX = 64;
const NAME = /^[A-Za-z_][\w-]*$|^\d{1,4}$/;

/** `implied`: the name of a first part that is a value only. EINVAL, with no value in its message. */
export function keyval(text: string, implied?: string): KeyvalTree {
  const root: Branch = new Map();
  for (const [index, part] of splitOptions(text).entries()) {
    const equals = part.indexOf('=');
    if (equals >= 0) put(root, part.slice(0, equals), part.slice(equals + 1));
    else if (index === 0 && implied !== undefined) put(root, implied, part);
    // It may be what followed a comma in a secret.
    else throw refusal(`Expected '=' in part ${index + 1} of the options`);
  }
  return treeOf(root, '') as KeyvalTree;
}

function put(root: Branch, name: string, value: string): void {
  const path = name.split('.');
  if (path.length > DEPTH_MAX || !path.every((step) => NAME.test(step))) throw refusal(`Invalid parameter '${name}'`);
  let at = root;
  for (const [depth, step] of path.slice(0, -1).entries()) {
    const next = at.get(step) ?? new Map();
    if (typeof next === 'string') throw inconsistent(path.slice(0, depth + 1).join('.'));
    at.set(step, next);
    at = next;
  }
  const last = path.at(-1)!;
  if (at.get(last) instanceof Map) throw inconsistent(name);
  at.set(last, value);
}

function treeOf(branch: Branch, name: string): KeyvalValue {
  const entries = [...branch].map(([step, value]) => {
    const full = name === '' ? step : `${name}.${step}`;
    return [step, typeof value === 'string' ? value : treeOf(value, full)] as const;
  });
  const numbered = entries.filter(([step]) => /^\d/.test(step)).length;
  if (numbered === 0) return Object.fromEntries(entries);
  if (numbered < entries.length || name === '') throw inconsistent(name);
  const list = entries.sort(([a], [b]) => Number(a) - Number(b));
  const missing = list.findIndex(([step], index) => Number(step) !== index);
  if (missing >= 0) throw refusal(`Parameter '${name}.${missing}' missing`);
  return list.map(([, value]) => value);
}

function inconsistent(name: string): BlockError {
  return refusal(`Parameters '${name}.*' used inconsistently`);
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
