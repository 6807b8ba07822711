/** For tests of the NBD client: our own server, in the same context or ended and started again, and the node on it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { AioContext } from '../../aio/context.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { registerTestDrivers, type TestDisk, testDisk } from '../../block/testing.ts';
import { type NbdLimits, resolveLimits } from '../../exports/nbd/limits.ts';
import { NbdServer } from '../../exports/nbd/server.ts';
import { nbdDriver } from './driver.ts';

registerTestDrivers();
registerDriver(nbdDriver);

let disks = 0;

export interface TestServerOptions {
  readonly writable?: boolean;
  readonly multiConn?: boolean;
  readonly limits?: Partial<NbdLimits>;
}

/** A disk in memory, served under the name 'disk' on a unix socket. The disk outlives the server. */
export class TestServer {
  readonly disk: TestDisk;
  readonly path: string;
  readonly #context: AioContext;
  readonly #options: TestServerOptions;
  readonly #folder = mkdtempSync(join(tmpdir(), 'nbd-client-'));
  readonly #name = `nbd-client-${disks++}`;
  #server: NbdServer | undefined;
  #blk: BlockBackend | undefined;

  constructor(context: AioContext, size: number, options: TestServerOptions = {}) {
    this.#context = context;
    this.#options = options;
    this.disk = testDisk(this.#name, size);
    this.path = join(this.#folder, 'socket');
  }

  get server(): NbdServer {
    return this.#server!;
  }

  async start(): Promise<void> {
    const { writable = true, multiConn = true, limits = {} } = this.#options;
    this.#blk = await BlockBackend.open(this.#context, {
      driver: 'memory',
      disk: this.#name,
      discard: 'unmap',
      ...(writable ? {} : { 'read-only': true }),
    });
    this.#server = new NbdServer(this.#context, { limits: resolveLimits(limits) });
    this.#server.addExport({
      ...{ name: 'disk', description: 'a disk', blk: this.#blk, writable, multiConn },
      allocationDepth: true,
    });
    await this.#server.listen({ kind: 'unix', path: this.path });
  }

  /** Its connections are cut, whatever is in flight. */
  async stop(): Promise<void> {
    await this.#server?.stop(0);
    await this.#blk?.close();
    this.#server = undefined;
    this.#blk = undefined;
  }

  async remove(): Promise<void> {
    await this.stop();
    rmSync(this.#folder, { recursive: true });
  }

  options(more: Readonly<Record<string, unknown>> = {}): NodeOptions {
    const server = { type: 'unix', path: this.path };
    return { driver: 'nbd', server, export: 'disk', discard: 'unmap', ...more } as NodeOptions;
  }
}

/** A server and a client of it, both closed after `body`. */
export async function withServer(
  context: AioContext,
  size: number,
  options: TestServerOptions & { readonly client?: Readonly<Record<string, unknown>> },
  body: (blk: BlockBackend, server: TestServer) => Promise<void>,
): Promise<void> {
  const server = new TestServer(context, size, options);
  await server.start();
  try {
    const blk = await BlockBackend.open(context, server.options(options.client));
    try {
      await body(blk, server);
    } finally {
      await blk.close();
    }
  } finally {
    await server.remove();
  }
}
