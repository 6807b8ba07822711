/** Checks the options of a node against what its driver takes. */
import { BlockError, Errno } from '../base/errors.ts';
import { isOffset } from '../base/units.ts';
import type { Driver, OptionSpec, SharedThrottle } from './driver.ts';

/** Of an enum with more, not all are listed in a message. */
const VALUES_SHOWN = 16;

/** Options that every node takes. */
export const COMMON_OPTIONS: Readonly<Record<string, OptionSpec>> = {
  driver: { type: 'string', help: 'driver' },
  'node-name': { type: 'string', help: 'name of the node' },
  active: { type: 'boolean', help: 'off: somebody else has the image until it is activated' },
  'read-only': { type: 'boolean', help: 'no writes' },
  'auto-read-only': { type: 'boolean', help: 'read-only where writing is not allowed' },
  'force-share': { type: 'boolean', help: 'take no locks against other users; read-only' },
  discard: { type: 'enum', values: ['ignore', 'unmap'], help: 'what becomes of discards' },
  'detect-zeroes': { type: 'enum', values: ['off', 'on', 'unmap'], help: 'turn writes of zeroes into zero writes' },
};

/** The driver's own options out of all that were given; EINVAL names the one that is wrong. */
export function ownOptions(driver: Driver, options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const own: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(flattened(driver, options))) {
    if (value === undefined) continue;
    if (name === 'cache') {
      checkCache(driver, value);
      continue;
    }
    if (driver.children && Object.hasOwn(driver.children, name)) {
      checkChild(driver, name, value);
      continue;
    }
    const mine = Object.hasOwn(driver.options, name) ? driver.options[name] : undefined;
    const spec = mine ?? (Object.hasOwn(COMMON_OPTIONS, name) ? COMMON_OPTIONS[name] : undefined);
    if (!spec) throw invalid(driver, `unknown option '${name}'`);
    checkValue((why) => invalid(driver, why), name, spec, value);
    if (mine) own[name] = value;
  }
  for (const [name, spec] of Object.entries(driver.options)) {
    if (spec.required && own[name] === undefined) throw invalid(driver, `option '${name}' is missing`);
  }
  if (options['force-share'] === true && options['read-only'] !== true) {
    throw invalid(driver, "'force-share' needs 'read-only'");
  }
  return own;
}

/** Options whose names have a dot may come as an object: `server: { type: 'unix' }` is `'server.type': 'unix'`. */
function flattened(driver: Driver, options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const flat: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(options)) {
    const group = typeof value === 'object' && value !== null && isGroup(driver, name);
    const members = group ? Object.entries(value).map(([member, own]) => [`${name}.${member}`, own] as const) : [];
    for (const [full, own] of group ? members : ([[name, value]] as const)) {
      if (Object.hasOwn(flat, full)) throw invalid(driver, `option '${full}' is given twice`);
      flat[full] = own;
    }
  }
  return flat;
}

/** True for the first part of a driver's options with a dot in their name. */
export function isGroup(driver: Driver, name: string): boolean {
  return Object.keys(driver.options).some((option) => option.startsWith(`${name}.`));
}

/** What an image is made with, checked against the driver's creation options; undefined values are left out. EINVAL
 *  names the one that is wrong. */
export function creationOptions(
  driver: Driver,
  options: Readonly<Record<string, unknown>>,
): Readonly<Record<string, unknown>> {
  const fail = (why: string): BlockError =>
    new BlockError(Errno.EINVAL, `Could not create a '${driver.name}' image: ${why}`);
  const specs = driver.createOptions ?? {};
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [name, value] of given) {
    if (!Object.hasOwn(specs, name)) throw fail(`unknown option '${name}'`);
    checkValue(fail, name, specs[name]!, value);
  }
  const missing = Object.keys(specs).find((name) => specs[name]!.required && options[name] === undefined);
  if (missing !== undefined) throw fail(`option '${missing}' is missing`);
  return Object.fromEntries(given);
}

function checkValue(fail: (why: string) => BlockError, name: string, spec: OptionSpec, value: unknown): void {
  const shown = typeof value === 'string' ? `'${value}'` : JSON.stringify(value);
  const wrong = (what: string): BlockError => fail(`option '${name}' is ${shown}, not ${what}`);
  switch (spec.type) {
    case 'boolean':
      if (typeof value !== 'boolean') throw wrong('a boolean');
      return;
    case 'size':
      if (!isOffset(value)) throw wrong('a number of bytes up to 2^53-1');
      return;
    case 'number':
      if (typeof value !== 'number' || !Number.isFinite(value)) throw wrong('a number');
      return;
    case 'enum':
      if (typeof value !== 'string' || !spec.values!.includes(value)) throw wrong(oneOf(spec.values!));
      return;
    case 'list':
      if (!Array.isArray(value)) throw wrong('a list');
      for (const [i, one] of value.entries()) checkValue(fail, `${name}.${i}`, spec.element!, one);
      return;
    case 'object':
      checkMembers(fail, name, spec.members!, value);
      return;
    case 'secret':
      if (typeof value !== 'string') throw fail(`option '${name}' is not a string`);
      return;
    case 'group':
      if (typeof value !== 'string' && !isSharedThrottle(value)) throw wrong('the name of a throttle group');
      return;
    default:
      if (typeof value !== 'string') throw wrong('a string');
      if (value.includes('\0')) throw wrong('a string without NUL');
  }
}

function oneOf(values: readonly string[]): string {
  return values.length > VALUES_SHOWN ? `one of the ${values.length} that there are` : `one of ${values.join(', ')}`;
}

function checkMembers(
  fail: (why: string) => BlockError,
  name: string,
  specs: Readonly<Record<string, OptionSpec>>,
  value: unknown,
): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail(`option '${name}' is no object`);
  const given = Object.entries(value).filter(([, own]) => own !== undefined);
  for (const [member, own] of given) {
    if (!Object.hasOwn(specs, member)) throw fail(`unknown option '${name}.${member}'`);
    checkValue(fail, `${name}.${member}`, specs[member]!, own);
  }
  const missing = Object.keys(specs).find((member) => specs[member]!.required && !Object.hasOwn(value, member));
  if (missing !== undefined) throw fail(`option '${name}.${missing}' is missing`);
}

function isSharedThrottle(value: unknown): boolean {
  const { name, memory } = Object(value) as Partial<SharedThrottle>;
  return typeof name === 'string' && memory instanceof SharedArrayBuffer;
}

function checkChild(driver: Driver, name: string, value: unknown): void {
  if (typeof value === 'string' || value === null) return;
  if (typeof value === 'object' && typeof (value as { driver?: unknown }).driver === 'string') return;
  throw invalid(driver, `option '${name}' is neither a node-name nor the options of a node with a 'driver'`);
}

function checkCache(driver: Driver, value: unknown): void {
  if (typeof value !== 'object' || value === null) throw invalid(driver, "option 'cache' is not an object");
  for (const [name, flag] of Object.entries(value)) {
    if (name !== 'direct' && name !== 'no-flush') throw invalid(driver, `unknown option 'cache.${name}'`);
    if (typeof flag !== 'boolean') throw invalid(driver, `option 'cache.${name}' is not a boolean`);
  }
}

function invalid(driver: Driver, why: string): BlockError {
  return new BlockError(Errno.EINVAL, `Could not open a '${driver.name}' node: ${why}`);
}
