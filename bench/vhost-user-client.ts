/**
 * A load on a vhost-user-blk back-end, through our own driver: random requests, so many at a time. A program of its
 * own, so that its processor time is not the back-end's: `vhost-user-client SOCKET LOAD`, LOAD as JSON; prints a
 * VhostResult as JSON.
 */
import { coSleep } from '../src/aio/co-timeout.ts';
import { AioContext } from '../src/aio/context.ts';
import { Gate } from '../src/aio/op.ts';
import { RingBackend } from '../src/aio/ring/backend.ts';
import { Prng } from '../src/base/prng.ts';
import { BlockBackend } from '../src/block/backend.ts';
import type { NodeOptions } from '../src/block/graph.ts';
import { registerDriver } from '../src/block/registry.ts';
import { BlockRequest, RequestKind } from '../src/block/request.ts';
import { virtioBlkVhostUserDriver } from '../src/drivers/virtio-blk-vhost-user/driver.ts';

export interface VhostLoad {
  readonly write: boolean;
  /** 0: it has its queues, and asks nothing. */
  readonly depth: number;
  readonly blockBytes: number;
  /** Of the disk that is used. */
  readonly bytes: number;
  readonly seconds: number;
  /** The client looks at its rings for so long before it waits for an interrupt. */
  readonly spinUs: number;
  /** With a packed ring, where the back-end has them. */
  readonly packed: boolean;
  readonly queues: number;
}

export interface VhostResult {
  readonly iops: number;
  readonly operations: number;
}

/** How many ends of requests there are between two looks at the clock. */
const LOOK = 32;

class Client {
  readonly #blk: BlockBackend;
  readonly #load: VhostLoad;
  readonly #prng = new Prng(7);
  readonly #requests: ClientRequest[] = [];
  operations = 0;
  #busy = 0;
  #endMs = 0;
  #over = new Gate();

  constructor(blk: BlockBackend, load: VhostLoad) {
    this.#blk = blk;
    this.#load = load;
    const memory = blk.context.backend.memory(new Uint8Array(new SharedArrayBuffer(load.depth * load.blockBytes)));
    for (let i = 0; i < load.depth; i++) {
      const request = new ClientRequest(this);
      request.kind = load.write ? RequestKind.WRITE : RequestKind.READ;
      request.length = load.blockBytes;
      request.iov.push(memory, i * load.blockBytes, load.blockBytes);
      this.#requests.push(request);
    }
  }

  submit(request: ClientRequest): void {
    const { blockBytes, bytes } = this.#load;
    request.at = this.#prng.below(Math.floor(bytes / blockBytes)) * blockBytes;
    this.#blk.submit(request);
  }

  done(request: ClientRequest, error: number): void {
    if (error !== 0) throw new Error(`Could not measure: a request has failed (${error})`);
    this.operations++;
    if (this.operations % LOOK === 0 && performance.now() > this.#endMs) this.#endMs = 0;
    if (this.#endMs > 0) this.submit(request);
    else if (--this.#busy === 0) this.#over.open();
  }

  async run(seconds: number): Promise<VhostResult> {
    this.operations = 0;
    this.#busy = this.#requests.length;
    const begin = performance.now();
    this.#endMs = begin + seconds * 1000;
    this.#over = new Gate();
    for (const request of this.#requests) this.submit(request);
    await this.#over.promise;
    return { iops: this.operations / ((performance.now() - begin) / 1000), operations: this.operations };
  }
}

class ClientRequest extends BlockRequest {
  readonly #client: Client;

  constructor(client: Client) {
    super();
    this.quiet = true;
    this.#client = client;
  }

  done(error: number): void {
    this.#client.done(this, error);
  }
}

const [path, text] = process.argv.slice(2);
const load = JSON.parse(text!) as VhostLoad;
registerDriver(virtioBlkVhostUserDriver);
// One that has grown does not shrink: so a client that spins does so always.
const context = new AioContext(new RingBackend(), { pollMaxNs: load.spinUs * 1000, pollShrink: 1 });
const node = { driver: 'virtio-blk-vhost-user', path, packed: load.packed, 'num-queues': load.queues };
const blk = await BlockBackend.open(context, node as unknown as NodeOptions, {});
if (load.depth === 0) await coSleep(context, load.seconds * 1e9).promise;
else {
  const client = new Client(blk, load);
  await client.run(load.seconds / 4);
  process.stdout.write(JSON.stringify(await client.run(load.seconds)));
}
await blk.close();
await context.stop();
