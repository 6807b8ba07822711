import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { RingBackend } from '../../aio/ring/backend.ts';
import { BlockBackend } from '../../block/backend.ts';
import { driverConformance } from '../../block/conformance.ts';
import { type ClientOptions, OwnBackEnd, QemuBackEnd, skip } from './testing.ts';

const qemu = QemuBackEnd.missing;

function suite(
  name: string,
  whyNot: string | false,
  writable: boolean,
  blockBytes: number,
  client: ClientOptions,
): void {
  driverConformance({
    test: (title, body) => test(title, { skip: skip || whyNot, timeout: 60_000 }, body),
    name,
    writable,
    open: async (size) => {
      const context = new AioContext(new RingBackend());
      const end = name.startsWith('qemu')
        ? new QemuBackEnd(size)
        : new OwnBackEnd(context, size, { writable, queues: 4, blockBytes });
      await end.start();
      const blk = await BlockBackend.open(context, end.options(client));
      return {
        blk,
        close: async () => {
          await blk.close();
          await end.stop();
          end.remove();
          await context.stop();
        },
      };
    },
  });
}

suite('our export, split ring', false, true, 512, {});
suite('our export, packed rings, three queues', false, true, 512, { packed: true, 'num-queues': 3 });
suite('our export, blocks of 4 KiB', false, true, 4096, {});
suite('our export, read-only', false, false, 512, { 'read-only': true });
suite('qemu-storage-daemon', qemu, true, 512, {});
suite('qemu-storage-daemon, two queues', qemu, true, 512, { packed: true, 'num-queues': 5 });
