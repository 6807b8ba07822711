/** How a program names a module with drivers. */
import { isAbsolute } from 'node:path';
import { pathToFileURL } from 'node:url';
import { BlockError, Errno } from '../base/errors.ts';

/** As URLs, which mean the same in every thread. Throws EINVAL for what is neither a URL nor an absolute path. */
export function driverUrls(modules: readonly (string | URL)[]): string[] {
  return modules.map((module) => {
    if (module instanceof URL) return module.href;
    if (typeof module === 'string' && isAbsolute(module)) return pathToFileURL(module).href;
    if (typeof module === 'string' && /^(file|data):/.test(module)) return module;
    throw new BlockError(Errno.EINVAL, `drivers: '${module}' is not a file: URL, a data: URL or an absolute path`);
  });
}
