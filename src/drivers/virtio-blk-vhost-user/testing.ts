/** For tests of the vhost-user client: back-ends of ours in the same context, and qemu-storage-daemon's. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { AioContext } from '../../aio/context.ts';
import { RingBackend } from '../../aio/ring/backend.ts';
import { whyNoRing } from '../../aio/select.ts';
import { BlockBackend } from '../../block/backend.ts';
import type { NodeOptions } from '../../block/graph.ts';
import { registerDriver } from '../../block/registry.ts';
import { registerTestDrivers, type TestDisk, testDisk } from '../../block/testing.ts';
import { VhostUserBlkServer } from '../../exports/vhost-user-blk/server.ts';
import { virtioBlkVhostUserDriver } from './driver.ts';

registerTestDrivers();
registerDriver(virtioBlkVhostUserDriver);

export const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : ((await whyNoRing()) ?? false);
let disks = 0;

export type ClientOptions = Readonly<Record<string, unknown>>;

/** Where a back-end listens, in a folder of its own. */
class Place {
  readonly folder = mkdtempSync(join(tmpdir(), 'vhost-client-'));
  readonly path = join(this.folder, 'socket');

  options(more: ClientOptions = {}): NodeOptions {
    return { driver: 'virtio-blk-vhost-user', path: this.path, discard: 'unmap', ...more } as NodeOptions;
  }

  remove(): void {
    rmSync(this.folder, { recursive: true });
  }
}

export interface BackEndOptions {
  readonly writable?: boolean;
  readonly queues?: number;
  readonly blockBytes?: number;
}

/** Our export, of a disk in memory. The disk outlives the server. */
export class OwnBackEnd extends Place {
  readonly disk: TestDisk;
  readonly context: AioContext;
  readonly #name = `vhost-client-${disks++}`;
  readonly #options: BackEndOptions;
  blk!: BlockBackend;
  server!: VhostUserBlkServer;

  constructor(context: AioContext, size: number, options: BackEndOptions = {}) {
    super();
    this.context = context;
    this.disk = testDisk(this.#name, size);
    this.#options = options;
  }

  async start(): Promise<void> {
    const node = { driver: 'memory', disk: this.#name, discard: 'unmap' } as const;
    this.blk = await BlockBackend.open(this.context, node, {});
    this.server = new VhostUserBlkServer(this.context, this.blk, { writable: true, ...this.#options });
    await this.server.listen({ kind: 'unix', path: this.path });
  }

  async stop(): Promise<void> {
    await this.server.stop();
    await this.blk.close();
  }
}

/** qemu-storage-daemon's export, of a raw file. */
export class QemuBackEnd extends Place {
  /** Why there is none, for tests. */
  static readonly missing = spawnSync('qemu-storage-daemon', ['--version']).error
    ? 'qemu-storage-daemon is not installed'
    : false;
  readonly image = join(this.folder, 'image');
  #child: ChildProcess | undefined;

  constructor(size: number) {
    super();
    writeFileSync(this.image, '');
    truncateSync(this.image, size);
  }

  async start(): Promise<void> {
    const file = `driver=file,node-name=disk,filename=${this.image},discard=unmap`;
    const way = `writable=on,num-queues=2,addr.type=unix,addr.path=${this.path}`;
    // Written once the export listens, which its socket being there does not say.
    const pidfile = join(this.folder, 'pid');
    rmSync(pidfile, { force: true });
    const args = [
      '--pidfile',
      pidfile,
      '--blockdev',
      file,
      '--export',
      `type=vhost-user-blk,id=e,node-name=disk,${way}`,
    ];
    this.#child = spawn('qemu-storage-daemon', args, { stdio: 'ignore' });
    await once(this.#child, 'spawn');
    for (let tries = 0; !existsSync(pidfile); tries++) {
      if (tries > 500) throw new Error('qemu-storage-daemon does not listen');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async stop(): Promise<void> {
    const child = this.#child!;
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    rmSync(this.path, { force: true });
  }
}

/** True while the node has a back-end. */
export function isConnected(blk: BlockBackend): boolean {
  const info = blk.root!.impl.info!() as Record<string, unknown>;
  return info.connected === true;
}

/** A ring context for `body`. */
export async function withContext(body: (context: AioContext) => Promise<void>): Promise<void> {
  const context = new AioContext(new RingBackend(), { name: 'vhost-client' });
  try {
    await body(context);
  } finally {
    await context.stop();
  }
}

export interface Client {
  readonly context: AioContext;
  readonly blk: BlockBackend;
  readonly end: OwnBackEnd;
}

/** A test with our back-end and a client of it. */
export function onClient(
  title: string,
  options: BackEndOptions & { readonly client?: ClientOptions },
  body: (client: Client) => Promise<void>,
): void {
  test(title, { skip, timeout: 60_000 }, () =>
    withContext(async (context) => {
      const end = new OwnBackEnd(context, 4 * 2 ** 20, options);
      await end.start();
      const blk = await BlockBackend.open(context, end.options(options.client), {});
      try {
        await body({ context, blk, end });
        await blk.close();
      } finally {
        // The context waits for its end, also when the test has failed.
        await end.stop();
        end.remove();
      }
    }),
  );
}
