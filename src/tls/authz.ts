/**
 * Who may come in, by the distinguished name of its certificate, in the terms of QEMU's `authz-simple`, `authz-list`
 * and `authz-list-file` objects. Names are as GnuTLS writes them: `C=GB,O=Example,CN=laptop`.
 */
import { readFileSync, statSync } from 'node:fs';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import { type Bytes, MiB } from '../base/units.ts';

export type AuthzPolicy = 'allow' | 'deny';

export interface AuthzRule {
  /** A name; with `format` glob, one in which '*' stands for any text and '?' for any character. */
  readonly match: string;
  readonly policy: AuthzPolicy;
  /** Default exact. */
  readonly format?: 'exact' | 'glob' | undefined;
}

/** The first rule that a name fits decides. */
export interface AuthzList {
  readonly rules?: readonly AuthzRule[] | undefined;
  /** Where no rule does; default deny. */
  readonly policy?: AuthzPolicy | undefined;
}

/** A file with an {@link AuthzList} as JSON. */
export interface AuthzFile {
  readonly file: string;
  /** It is read anew for each client; default true. While it cannot be read, nobody comes in. */
  readonly refresh?: boolean | undefined;
}

/** An array: exactly these names. */
export type Authz = readonly string[] | AuthzList | AuthzFile;

const RULES_MAX = 4096;
const FILE_MAX: Bytes = 1 * MiB;

/** Decides about names. */
export class Authorizer {
  readonly #list: AuthzList | undefined;
  readonly #file: string | undefined;

  /** EINVAL names what is wrong; the system's errno of a file that cannot be read. */
  constructor(given: Authz) {
    checkAuthz(given);
    if ('file' in given) {
      const list = readList(given.file);
      if (given.refresh ?? true) this.#file = given.file;
      else this.#list = list;
    } else this.#list = Array.isArray(given) ? listOf(given as readonly string[]) : (given as AuthzList);
  }

  allows(name: string): boolean {
    if (this.#list) return decide(this.#list, name);
    try {
      return decide(readList(this.#file!), name);
    } catch {
      return false;
    }
  }
}

function listOf(names: readonly string[]): AuthzList {
  return { rules: names.map((match) => ({ match, policy: 'allow' })) };
}

function decide({ rules = [], policy = 'deny' }: AuthzList, name: string): boolean {
  const rule = rules.find(({ match, format }) => (format === 'glob' ? fits(match, name) : match === name));
  return (rule?.policy ?? policy) === 'allow';
}

/** '*' and '?', in time that is the product of both lengths at most. */
function fits(pattern: string, text: string): boolean {
  let star = -1;
  let resume = 0;
  let p = 0;
  for (let t = 0; t < text.length; ) {
    if (pattern[p] === '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.length && (pattern[p] === '?' || pattern[p] === text[t])) {
      p++;
      t++;
    } else if (star >= 0) {
      // The star takes one more.
      p = star + 1;
      t = ++resume;
    } else return false;
  }
  while (pattern[p] === '*') p++;
  return p === pattern.length;
}

/** EINVAL names what is wrong. Files are not looked at. */
export function checkAuthz(given: unknown): asserts given is Authz {
  if (Array.isArray(given)) {
    if (given.every((name) => typeof name === 'string')) return;
    throw refusal('authz: expected an array of distinguished names');
  }
  if (typeof given !== 'object' || given === null) throw refusal('authz: expected names, rules or a file');
  const { file, refresh, rules, policy, ...others } = given as Readonly<Record<string, unknown>>;
  const stray = Object.keys(others)[0];
  if (stray !== undefined) throw refusal(`Parameter '${stray}' is unexpected`);
  if (file !== undefined) {
    if (typeof file !== 'string' || rules !== undefined || policy !== undefined)
      throw refusal('authz: a file comes alone');
    if (refresh !== undefined && typeof refresh !== 'boolean')
      throw refusal("Invalid parameter type for 'refresh', expected: boolean");
    return;
  }
  if (refresh !== undefined) throw refusal("Parameter 'refresh' is unexpected");
  checkPolicy('policy', policy ?? 'deny');
  if (rules === undefined) return;
  if (!Array.isArray(rules)) throw refusal("Invalid parameter type for 'rules', expected: array");
  if (rules.length > RULES_MAX) throw refusal(`Parameter 'rules' has more than ${RULES_MAX} rules`);
  for (const [i, rule] of rules.entries()) checkRule(`rules.${i}`, rule);
}

function checkRule(where: string, rule: unknown): void {
  if (typeof rule !== 'object' || rule === null) throw refusal(`Parameter '${where}' is no rule`);
  const { match, policy, format, ...others } = rule as Readonly<Record<string, unknown>>;
  const stray = Object.keys(others)[0];
  if (stray !== undefined) throw refusal(`Parameter '${where}.${stray}' is unexpected`);
  if (match === undefined) throw refusal(`Parameter '${where}.match' is missing`);
  if (typeof match !== 'string') throw refusal(`Invalid parameter type for '${where}.match', expected: string`);
  if (policy === undefined) throw refusal(`Parameter '${where}.policy' is missing`);
  checkPolicy(`${where}.policy`, policy);
  if (format !== undefined && format !== 'exact' && format !== 'glob') {
    throw refusal(`Parameter '${where}.format' does not accept value '${format}'`);
  }
}

function checkPolicy(name: string, value: unknown): void {
  if (value === 'allow' || value === 'deny') return;
  throw refusal(`Parameter '${name}' does not accept value '${value}'`);
}

function readList(path: string): AuthzList {
  let text: string;
  try {
    const stat = statSync(path);
    if (!stat.isFile()) throw refusal(`'${path}' is not a file`);
    if (stat.size > FILE_MAX) throw refusal(`'${path}' is larger than ${FILE_MAX} bytes`);
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof BlockError) throw error;
    throw new BlockError(errnoOf(error), `Could not read '${path}': ${errnoText(errnoOf(error))}`, { cause: error });
  }
  let given: unknown;
  try {
    given = JSON.parse(text);
  } catch {
    throw refusal(`'${path}' is not JSON`);
  }
  checkAuthz(given);
  if (Array.isArray(given) || 'file' in given) throw refusal(`'${path}' has no rules`);
  return given as AuthzList;
}

function refusal(why: string): BlockError {
  return new BlockError(Errno.EINVAL, why);
}
