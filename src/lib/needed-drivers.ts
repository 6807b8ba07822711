/** The drivers that come along, each loaded when somebody needs it: a command line that looks at a file needs few. */
import type { Driver } from '../block/driver.ts';
import { isRegistered, registerDriver } from '../block/registry.ts';

const DRIVERS: Readonly<Record<string, () => Promise<Driver<never>>>> = {
  file: async () => (await import('../drivers/file/driver.ts')).fileDriver,
  host_device: async () => (await import('../drivers/file/driver.ts')).hostDeviceDriver,
  raw: async () => (await import('../drivers/raw/driver.ts')).rawDriver,
  qcow2: async () => (await import('../drivers/qcow2/driver.ts')).qcow2Driver,
  nbd: async () => (await import('../drivers/nbd/driver.ts')).nbdDriver,
  'null-co': async () => (await import('../drivers/null-co/driver.ts')).nullDriver,
  'null-aio': async () => (await import('../drivers/null-co/driver.ts')).nullAioDriver,
  http: async () => (await import('../drivers/http/driver.ts')).httpDriver,
  https: async () => (await import('../drivers/http/driver.ts')).httpsDriver,
  ftp: async () => (await import('../drivers/http/driver.ts')).ftpDriver,
  ftps: async () => (await import('../drivers/http/driver.ts')).ftpsDriver,
  'copy-on-read': async () => (await import('../drivers/copy-on-read/driver.ts')).copyOnReadDriver,
  'copy-before-write': async () => (await import('../drivers/copy-before-write/driver.ts')).copyBeforeWriteDriver,
  'snapshot-access': async () => (await import('../drivers/snapshot-access/driver.ts')).snapshotAccessDriver,
  blkverify: async () => (await import('../drivers/blkverify/driver.ts')).blkverifyDriver,
  compress: async () => (await import('../drivers/compress/driver.ts')).compressDriver,
  preallocate: async () => (await import('../drivers/preallocate/driver.ts')).preallocateDriver,
  blkdebug: async () => (await import('../drivers/blkdebug/driver.ts')).blkdebugDriver,
  throttle: async () => (await import('../drivers/throttle/driver.ts')).throttleDriver,
  'virtio-blk-vhost-user': async () =>
    (await import('../drivers/virtio-blk-vhost-user/driver.ts')).virtioBlkVhostUserDriver,
};

/** Names of all drivers that come along. */
export const DRIVER_NAMES: readonly string[] = Object.keys(DRIVERS);

/** Makes the drivers of a tree of options, and those of `names`, known in this thread. A name that is none is for
 *  whoever opens the tree to refuse. */
export async function needDrivers(tree: unknown, ...names: string[]): Promise<void> {
  for (const name of [...namesIn(tree), ...names]) {
    const load = Object.hasOwn(DRIVERS, name) ? DRIVERS[name] : undefined;
    if (load && !isRegistered(name)) registerDriver(await load(), name);
  }
}

/** Trees deeper than this are refused when they are opened. */
const DEPTH_MAX = 64;

function namesIn(tree: unknown, depth = 0): string[] {
  if (typeof tree !== 'object' || tree === null || depth > DEPTH_MAX) return [];
  return Object.entries(tree).flatMap(([option, value]: [string, unknown]) =>
    option === 'driver' && typeof value === 'string' ? [value] : namesIn(value, depth + 1),
  );
}
