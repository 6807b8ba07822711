import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { type BackendChoice, chooseBackend } from '../../aio/select.ts';
import { Sim } from '../../aio/sim/sim.ts';
import { backends } from '../../aio/testing.ts';
import { BlockBackend } from '../../block/backend.ts';
import { driverConformance } from '../../block/conformance.ts';
import { TestServer } from './testing.ts';

/** In sim, what is received comes in pieces. */
const SHORT = { recv: { short: 0.3 } };

async function contextOf(choice: BackendChoice | 'sim', size: number): Promise<AioContext> {
  if (choice !== 'sim') return new AioContext(await chooseBackend(choice));
  const sim = new Sim(size, { chances: SHORT });
  sim.driveItself();
  return new AioContext(sim.backend());
}

function suite(
  choice: BackendChoice | 'sim',
  name: string,
  writable: boolean,
  client: Readonly<Record<string, unknown>>,
): void {
  driverConformance({
    test,
    name: `nbd on our server, ${name} [${choice}]`,
    writable,
    open: async (size) => {
      const context = await contextOf(choice, size);
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

for (const choice of [...backends(), 'sim'] as const) {
  suite(choice, 'several connections', true, {});
  suite(choice, 'one connection', true, { connections: 1 });
  suite(choice, 'read-only', false, { 'read-only': true });
}
