import { registerDriver } from '../block/registry.ts';
import { blkdebugDriver } from '../drivers/blkdebug/driver.ts';
import { blkverifyDriver } from '../drivers/blkverify/driver.ts';
import { compressDriver } from '../drivers/compress/driver.ts';
import { copyBeforeWriteDriver } from '../drivers/copy-before-write/driver.ts';
import { copyOnReadDriver } from '../drivers/copy-on-read/driver.ts';
import { fileDriver, hostDeviceDriver } from '../drivers/file/driver.ts';
import { ftpDriver, ftpsDriver, httpDriver, httpsDriver } from '../drivers/http/driver.ts';
import { nbdDriver } from '../drivers/nbd/driver.ts';
import { nullAioDriver, nullDriver } from '../drivers/null-co/driver.ts';
import { preallocateDriver } from '../drivers/preallocate/driver.ts';
import { qcow2Driver } from '../drivers/qcow2/driver.ts';
import { rawDriver } from '../drivers/raw/driver.ts';
import { snapshotAccessDriver } from '../drivers/snapshot-access/driver.ts';
import { throttleDriver } from '../drivers/throttle/driver.ts';
import { virtioBlkVhostUserDriver } from '../drivers/virtio-blk-vhost-user/driver.ts';

/** Makes the drivers that come along known in this thread, all of them: needed-drivers.ts has them one by one.
 *  Idempotent. */
export function builtinDrivers(): void {
  registerDriver(nullDriver);
  registerDriver(nullAioDriver);
  registerDriver(fileDriver);
  registerDriver(hostDeviceDriver);
  registerDriver(nbdDriver);
  registerDriver(virtioBlkVhostUserDriver);
  registerDriver(rawDriver);
  registerDriver(qcow2Driver);
  registerDriver(copyOnReadDriver);
  registerDriver(copyBeforeWriteDriver);
  registerDriver(snapshotAccessDriver);
  registerDriver(throttleDriver);
  registerDriver(blkdebugDriver);
  registerDriver(blkverifyDriver);
  registerDriver(compressDriver);
  registerDriver(preallocateDriver);
  registerDriver(httpDriver);
  registerDriver(httpsDriver);
  registerDriver(ftpDriver);
  registerDriver(ftpsDriver);
}
