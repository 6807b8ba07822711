/** Loads drivers that come with a program into this thread. */
import { BlockError, Errno } from '../base/errors.ts';
import type { Driver } from '../block/driver.ts';
import { driverByName, registerDriver } from '../block/registry.ts';

interface DriverModule {
  readonly default?: unknown;
  readonly drivers?: unknown;
}

const ROLES: readonly unknown[] = ['protocol', 'format', 'filter'];

function isDriver(value: unknown): value is Driver {
  if (typeof value !== 'object' || value === null) return false;
  const { name, role, options, open } = value as { readonly [Key in keyof Driver]?: unknown };
  const named = typeof name === 'string' && name !== '' && ROLES.includes(role);
  return named && typeof options === 'object' && options !== null && typeof open === 'function';
}

function isKnown(name: string): boolean {
  try {
    driverByName(name);
    return true;
  } catch {
    return false;
  }
}

/** Registers the drivers of every module, or rejects with EINVAL or EEXIST and what is wrong with one. */
export async function loadDrivers(urls: readonly string[]): Promise<void> {
  for (const url of urls) {
    const failed = (errno: number, why: string, cause?: unknown): BlockError =>
      new BlockError(errno, `Could not load drivers from '${url.slice(0, 200)}': ${why}`, { cause });
    let module: DriverModule;
    try {
      module = (await import(url)) as DriverModule;
    } catch (error) {
      throw failed(Errno.EINVAL, error instanceof Error ? error.message : String(error), error);
    }
    const found = module.drivers ?? (module.default === undefined ? [] : [module.default]);
    if (!Array.isArray(found)) throw failed(Errno.EINVAL, "its export 'drivers' is not an array");
    if (found.length === 0) throw failed(Errno.EINVAL, "it exports neither a driver as default nor 'drivers'");
    for (const driver of found as readonly unknown[]) {
      if (!isDriver(driver)) throw failed(Errno.EINVAL, 'a driver has a name, a role, options and open()');
      if (isKnown(driver.name)) throw failed(Errno.EEXIST, `there is a driver '${driver.name}' already`);
      registerDriver(driver);
    }
  }
}
