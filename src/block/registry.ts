/** The drivers and the named nodes of this thread. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Driver } from './driver.ts';
import type { BlockNode } from './node.ts';

const drivers = new Map<string, Driver>();
const nodes = new Map<string, BlockNode | null>();
let autoNames = 0;
let thread = 0;
/** More than threads: names that are made up are unlike those of other threads, as one daemon has nodes in many. */
const AUTO_NAME_STEP = 1000;

/** Says which thread of the process this is (0 is its first), for the names that are made up. */
export function nameThread(threadId: number): void {
  thread = threadId;
}

/** Makes a driver known, under `names` as well as its own. A second one of the same name replaces the first. */
export function registerDriver<O extends object>(driver: Driver<O>, ...names: string[]): void {
  for (const name of [driver.name, ...names]) drivers.set(name, driver as unknown as Driver);
}

export function driverByName(name: string): Driver {
  const driver = drivers.get(name);
  if (driver) return driver;
  const known = [...drivers.keys()].sort().join(', ') || 'none';
  throw new BlockError(Errno.ENOENT, `Unknown driver '${name}' (known: ${known})`);
}

/** Every driver by each of its names. */
export function driverTable(): ReadonlyMap<string, Driver> {
  return drivers;
}

export function isRegistered(name: string): boolean {
  return drivers.has(name);
}

export function registeredDrivers(): readonly Driver[] {
  return [...new Set(drivers.values())];
}

/** Takes a node name before its node is there; without a name one is made up, or `former` is taken if it is free. */
export function reserveName(wanted: string | undefined, former?: string): string {
  let name = wanted;
  if (name === undefined && former !== undefined && !nodes.has(former)) name = former;
  else if (name === undefined) {
    do name = `#block${String(autoNames++ * AUTO_NAME_STEP + thread).padStart(3, '0')}`;
    while (nodes.has(name));
  } else if (!/^[A-Za-z][A-Za-z0-9._-]{0,30}$/.test(name)) {
    throw new BlockError(
      Errno.EINVAL,
      `Bad node-name '${name}': 1 to 31 letters, digits, '-', '.' or '_', a letter first`,
    );
  } else if (nodes.has(name)) {
    throw new BlockError(Errno.EEXIST, `A node named '${name}' exists already`);
  }
  nodes.set(name, null);
  return name;
}

export function setNode(name: string, node: BlockNode): void {
  nodes.set(name, node);
}

export function freeName(name: string): void {
  nodes.delete(name);
}

export function nodeByName(name: string): BlockNode {
  const node = nodes.get(name);
  if (node) return node;
  throw new BlockError(Errno.ENOENT, `Could not find node '${name}'`);
}

/** Every open node of this thread. */
export function allNodes(): BlockNode[] {
  return [...nodes.values()].filter((node) => node !== null);
}
