/** For tests of the NBD client: our own server, in the same context or ended and started again, and the node on it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import * as net from 'node:net';
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

/** Stands between client and server, and cuts what goes through it wherever it is. */
export class CutProxy {
  readonly path: string;
  /** False: nobody gets through. */
  open = true;
  readonly #server: net.Server;
  readonly #pairs = new Set<readonly [net.Socket, net.Socket]>();

  private constructor(path: string, target: string) {
    this.path = path;
    this.#server = net.createServer((client) => {
      client.on('error', () => undefined);
      if (!this.open) {
        client.destroy();
        return;
      }
      const server = net.connect(target);
      const pair = [client, server] as const;
      this.#pairs.add(pair);
      server.on('error', () => undefined);
      for (const [one, other] of [pair, [server, client]] as const) {
        one.pipe(other);
        one.on('close', () => {
          other.destroy();
          this.#pairs.delete(pair);
        });
      }
    });
  }

  static async listen(path: string, target: string): Promise<CutProxy> {
    const proxy = new CutProxy(path, target);
    await new Promise<void>((resolve) => proxy.#server.listen(path, resolve));
    return proxy;
  }

  get connections(): number {
    return this.#pairs.size;
  }

  /** The oldest connection, or `count` of them. */
  cut(count = 1): void {
    for (const [client, server] of [...this.#pairs].slice(0, count)) {
      server.destroy();
      client.destroy();
    }
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.cut(Number.POSITIVE_INFINITY);
    await closed;
  }
}

export interface TestServerOptions {
  readonly writable?: boolean;
  readonly multiConn?: boolean;
  readonly limits?: Partial<NbdLimits>;
  /** Clients come through a CutProxy. */
  readonly proxy?: boolean;
  /** Closing fails: the flush before it does. */
  readonly lossy?: boolean;
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
  #proxy: CutProxy | undefined;

  constructor(context: AioContext, size: number, options: TestServerOptions = {}) {
    this.#context = context;
    this.#options = options;
    this.disk = testDisk(this.#name, size);
    this.path = join(this.#folder, 'socket');
  }

  get server(): NbdServer {
    return this.#server!;
  }

  get proxy(): CutProxy {
    return this.#proxy!;
  }

  async start(): Promise<void> {
    if (this.#options.proxy) this.#proxy ??= await CutProxy.listen(`${this.path}.proxy`, this.path);
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

  /** Its connections end; requests that it has taken up are done, and answered where that is possible at once. */
  async stop(): Promise<void> {
    await this.#server?.stop(0);
    await this.#blk?.close();
    this.#server = undefined;
    this.#blk = undefined;
  }

  async remove(): Promise<void> {
    await this.#proxy?.close();
    await this.stop();
    rmSync(this.#folder, { recursive: true });
  }

  options(more: Readonly<Record<string, unknown>> = {}): NodeOptions {
    const server = { type: 'unix', path: this.#proxy?.path ?? this.path };
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
      if (options.lossy) await assert.rejects(blk.close(), { code: 'EIO' });
      else await blk.close();
    }
  } finally {
    await server.remove();
  }
}
