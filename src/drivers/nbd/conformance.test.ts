import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { type BackendChoice, chooseBackend } from '../../aio/select.ts';
import { backends } from '../../aio/testing.ts';
import { BlockBackend } from '../../block/backend.ts';
import { driverConformance } from '../../block/conformance.ts';
import { TestServer } from './testing.ts';

function suite(
  choice: BackendChoice,
  name: string,
  writable: boolean,
  client: Readonly<Record<string, unknown>>,
): void {
  driverConformance({
    test,
    name: `nbd on our server, ${name} [${choice}]`,
    writable,
    open: async (size) => {
      const context = new AioContext(await chooseBackend(choice));
      const server = new TestServer(context, size, { writable });
      await server.start();
      const blk = await BlockBackend.open(context, server.options(client));
      return {
        blk,
        close: async () => {
          await blk.close();
          await server.remove();
          await context.stop();
        },
      };
    },
  });
}

for (const choice of backends()) {
  suite(choice, 'several connections', true, {});
  suite(choice, 'one connection', true, { connections: 1 });
  suite(choice, 'read-only', false, { 'read-only': true });
}
