import { AioContext } from '../aio/context.ts';
import { chooseBackend } from '../aio/select.ts';
import type { Driver } from '../block/driver.ts';
import { ownOptions } from '../block/options.ts';
import { Connector } from '../drivers/nbd/connector.ts';
import { nbdDriver } from '../drivers/nbd/driver.ts';
import type { ListedExport } from '../drivers/nbd/export-listing.ts';
import { type NbdOptions as DriverOptions, nbdTarget } from '../drivers/nbd/options.ts';
import type { NbdOptions } from './options.ts';

export type { ListedExport };

/**
 * The exports of an NBD server, and what it says of each, at most 4096. The message of the BlockError that this rejects
 * with is why. For a program's thread: libuv does the waiting.
 */
export async function nbdExports(
  node: Pick<NbdOptions, 'server' | 'tls-creds' | 'tls-hostname'>,
): Promise<ListedExport[]> {
  const options = ownOptions(nbdDriver as unknown as Driver, { driver: 'nbd', ...node });
  const target = nbdTarget(options as unknown as DriverOptions);
  const context = new AioContext(await chooseBackend('pool'), { name: 'list' });
  try {
    const connector = await Connector.of(context, target);
    return await connector.list();
  } finally {
    await context.stop();
  }
}
