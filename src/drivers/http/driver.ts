/** What is known of http and https before a node is opened: the rest is loaded by the first one of a thread. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Driver } from '../../block/driver.ts';
import { shownUrl } from './location.ts';
import { type HttpOptions, OPTIONS } from './settings.ts';

function webDriver(name: 'http' | 'https'): Driver<HttpOptions> {
  return {
    ...{ name, role: 'protocol', options: OPTIONS },
    open: async (context, options) => (await import('./node.ts')).openHttp(context, options, name),
  };
}

export const httpDriver = webDriver('http');
export const httpsDriver = webDriver('https');

/** Known by name, so that it is said what is missing. */
export const ftpDriver: Driver<HttpOptions> = {
  name: 'ftp',
  role: 'protocol',
  options: OPTIONS,
  open: (_context, { url }) => {
    const why = 'the protocols ftp and ftps are not supported yet, http and https are';
    throw new BlockError(Errno.ENOTSUP, `Could not open '${shownUrl(url)}': ${why}`, { where: { op: 'open' } });
  },
};
