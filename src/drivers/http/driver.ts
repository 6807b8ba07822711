/** What is known of http, https, ftp and ftps before a node is opened: the rest is loaded by the first of a thread. */
import type { Driver } from '../../block/driver.ts';
import { FTP_OPTIONS, type HttpOptions, OPTIONS, type Protocol } from './settings.ts';

function remoteDriver(name: Protocol): Driver<HttpOptions> {
  const options = name.startsWith('ftp') ? FTP_OPTIONS : OPTIONS;
  return {
    ...{ name, role: 'protocol', options },
    open: async (context, given) => (await import('./node.ts')).openHttp(context, given, name),
  };
}

export const httpDriver = remoteDriver('http');
export const httpsDriver = remoteDriver('https');
export const ftpDriver = remoteDriver('ftp');
export const ftpsDriver = remoteDriver('ftps');
