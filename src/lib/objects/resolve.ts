/** Options that name objects, with what these hold in the place of their names: the engine knows of no objects. */
import { BlockError, Errno } from '../../base/errors.ts';
import { SECRET } from './secret.ts';
import type { ObjectStore } from './store.ts';
import { THROTTLE_GROUP } from './throttle.ts';
import { credentialsOf } from './tls.ts';

/** The last part of an option's name, and what it is with the secret itself. */
const SECRETS: Readonly<Record<string, string>> = {
  'key-secret': 'key',
  'password-secret': 'password',
  'cookie-secret': 'cookie',
  'proxy-password-secret': 'proxy-password',
  'bearer-token-secret': 'bearer-token',
};

/**
 * A tree of options, of a node or of a new image, without names of objects. What names none stays the same object.
 * ENOENT for an id that is not there; without a store there is none.
 */
export function withObjects<T>(tree: T, objects: ObjectStore | undefined): T {
  return resolve(tree, objects, new Map()) as T;
}

function resolve(value: unknown, objects: ObjectStore | undefined, seen: Map<unknown, unknown>): unknown {
  if (!isTree(value)) return value;
  if (seen.has(value)) return seen.get(value);
  // A tree that goes round in a circle is for the graph to refuse.
  seen.set(value, value);
  const entries = Object.entries(value);
  const resolved = entries.map(([name, own]): [string, unknown] => {
    if (name === 'throttle-group' && typeof own === 'string' && objects) {
      return [name, { name: own, memory: objects.get(own, THROTTLE_GROUP).memory }];
    }
    if (name === 'tls-creds' && typeof own === 'string') {
      if (!objects) throw new BlockError(Errno.ENOENT, `No TLS credentials with id '${own}'`);
      return [name, credentialsOf(objects, own, 'client')];
    }
    const plain = secretOption(name);
    if (plain === undefined || own === undefined) return [name, resolve(own, objects, seen)];
    if (Object.hasOwn(value, plain)) throw refusal(`'${plain}' and '${name}' exclude each other`);
    if (typeof own !== 'string') throw refusal(`'${name}' is not a string`);
    if (!objects) throw new BlockError(Errno.ENOENT, `No secret with id '${own}'`);
    return [plain, objects.get(own, SECRET).text];
  });
  if (resolved.every(([name, own], i) => name === entries[i]![0] && own === entries[i]![1])) return value;
  const result = Array.isArray(value) ? resolved.map(([, own]) => own) : Object.fromEntries(resolved);
  seen.set(value, result);
  return result;
}

function isTree(value: unknown): value is object {
  if (typeof value !== 'object' || value === null) return false;
  return (
    Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype || Object.getPrototypeOf(value) === null
  );
}

/** 'encrypt.key' for 'encrypt.key-secret'; undefined for a name that is of no secret. */
export function secretOption(name: string): string | undefined {
  const at = name.lastIndexOf('.') + 1;
  const last = name.slice(at);
  return Object.hasOwn(SECRETS, last) ? name.slice(0, at) + SECRETS[last] : undefined;
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not use the options: option ${why}`);
}
