/** A run of the client benchmark: reads or writes at random places, many at a time. Prints how many seconds it took. */
import { AioContext } from '../src/aio/context.ts';
import { chooseBackend } from '../src/aio/select.ts';
import { Prng } from '../src/base/prng.ts';
import { BlockBackend } from '../src/block/backend.ts';
import { BlockRequest, RequestKind } from '../src/block/request.ts';
import { builtinDrivers } from '../src/lib/builtin-drivers.ts';

const [socket = '', kind = '', blockText = '', depthText = '', countText = '', connections = ''] =
  process.argv.slice(2);
const block = Number(blockText);
const depth = Number(depthText);

builtinDrivers();
const context = new AioContext(await chooseBackend(), { name: 'bench' });
const blk = await BlockBackend.open(context, {
  driver: 'nbd',
  server: { type: 'unix', path: socket },
  connections: Number(connections),
});
const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(depth * block)));
const random = new Prng(1);
const blocks = Math.floor(blk.length / block);
let left = 0;
let busy = 0;
let ended: () => void = () => undefined;

class Request extends BlockRequest {
  readonly #at: number;
  constructor(at: number) {
    super();
    this.#at = at;
  }
  go(): void {
    left--;
    busy++;
    this.kind = kind === 'write' ? RequestKind.WRITE : RequestKind.READ;
    this.at = random.below(blocks) * block;
    this.length = block;
    this.iov.reset().push(memory, this.#at, block);
    blk.submit(this);
  }
  done(error: number): void {
    if (error !== 0) throw new Error(`a request failed with ${error}`);
    busy--;
    if (left > 0) this.go();
    else if (busy === 0) ended();
  }
}

const requests = Array.from({ length: depth }, (_, i) => new Request(i * block));

async function run(count: number): Promise<number> {
  left = count;
  const began = performance.now();
  await new Promise<void>((resolve) => {
    ended = resolve;
    context.oneshot(() => {
      for (const request of requests) if (left > 0) request.go();
    });
  });
  return (performance.now() - began) / 1000;
}

// The compiler has seen the code before it counts.
await run(Math.ceil(Number(countText) / 5));
console.log(await run(Number(countText)));
await blk.close();
await context.stop();
