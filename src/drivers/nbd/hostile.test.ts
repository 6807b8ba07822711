/** Servers that lie, break the protocol, or leave: an error, bounded memory, and nothing claimed. */
import assert from 'node:assert/strict';
import type { AioContext } from '../../aio/context.ts';
import { inContext } from '../../aio/testing.ts';
import { Iov } from '../../base/memory.ts';
import { BlockBackend } from '../../block/backend.ts';
import { RequestFlags } from '../../block/driver.ts';
import { BlockStatus } from '../../block/status.ts';
import {
  Chunk,
  Command,
  NbdError,
  Option,
  OptionReply,
  REQUEST_SIZE,
  SIMPLE_REPLY_MAGIC,
  TransmissionFlag,
} from '../../proto/nbd/constants.ts';
import './testing.ts';
import {
  bytes,
  type FakeOffer,
  type FakePeer,
  type FakeRequest,
  type FakeServer,
  type Script,
  withFake,
} from './testing-fake.ts';

/** A client of a scripted server; both are closed after `body`. */
async function withClient(
  context: AioContext,
  script: Script,
  more: Readonly<Record<string, unknown>>,
  body: (blk: BlockBackend, fake: FakeServer) => Promise<void>,
): Promise<void> {
  await withFake(script, async (options, fake) => {
    const blk = await BlockBackend.open(context, { ...options, ...more });
    try {
      await body(blk, fake);
    } finally {
      await blk.close();
    }
  });
}

const DATA = new Uint8Array(4096).fill(7);

/** Answers everything as it should be: reads with sevens. */
async function honest(peer: FakePeer, offer: FakeOffer): Promise<void> {
  await peer.handshake(offer);
  for (let request = await peer.request(); request && request.type !== Command.DISC; request = await peer.request()) {
    if (request.type !== Command.READ) {
      if (offer.structured || offer.extended) peer.chunk(request, 1, Chunk.NONE);
      else peer.simple(request);
    } else if (offer.structured || offer.extended) {
      const payload = new Uint8Array([...bytes([8, request.offset]), ...new Uint8Array(request.length).fill(7)]);
      peer.chunk(request, 1, Chunk.OFFSET_DATA, payload);
    } else peer.simple(request, 0, new Uint8Array(request.length).fill(7));
  }
}

async function read(context: AioContext, blk: BlockBackend, at = 4096): Promise<Uint8Array> {
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(4096)));
  await blk.read(at, Iov.of(memory));
  return memory.bytes;
}

/** A read that is answered like this fails, and the next one gets an honest connection. */
function breaks(
  title: string,
  offer: FakeOffer,
  answer: (peer: FakePeer, request: FakeRequest) => void,
  ask: (context: AioContext, blk: BlockBackend) => Promise<unknown> = read,
): void {
  inContext(`a server that ${title} fails the request, and is asked anew`, async (context) => {
    const script: Script = async (peer, index) => {
      if (index > 0) return await honest(peer, offer);
      await peer.handshake(offer);
      answer(peer, (await peer.request())!);
      assert.equal(await peer.request(), undefined, 'the client leaves');
    };
    await withClient(context, script, { 'reconnect-delay': 5 }, async (blk, fake) => {
      await assert.rejects(ask(context, blk), { code: 'EIO' });
      assert.deepEqual(await read(context, blk), DATA);
      assert.equal(fake.connections, 2);
    });
  });
}

const STRUCTURED = { structured: true, context: 3 } as const;
const EXTENDED = { extended: true, context: 3 } as const;
const chunkOf = (at: number, length: number): Uint8Array =>
  new Uint8Array([...bytes([8, at]), ...new Uint8Array(length).fill(9)]);

breaks('answers with no known number', {}, (peer) => peer.write(new Uint8Array(16).fill(1)));
breaks('answers to another cookie', {}, (peer, request) => peer.simple({ ...request, cookieLo: 1 }, 0, DATA));
breaks('answers to another serial number', {}, (peer, request) => peer.simple({ ...request, cookieHi: 99 }, 0, DATA));
breaks('answers to a cookie beyond all', {}, (peer, request) => peer.simple({ ...request, cookieLo: 2 ** 32 - 1 }));
breaks('sends chunks that were not agreed on', {}, (peer, request) => peer.chunk(request, 1, Chunk.NONE));
breaks('answers a structured read simply', STRUCTURED, (peer, request) => peer.simple(request, 0, DATA));
breaks('answers an extended read with a short header', EXTENDED, (peer, request) => peer.simple(request, 0, DATA));
breaks('ends a read without data', STRUCTURED, (peer, request) => peer.chunk(request, 1, Chunk.NONE));
breaks('ends a read with half the data', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, chunkOf(4096, 2048)),
);
breaks('sends data before what was asked for (2019-14842)', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, chunkOf(0, 4096)),
);
breaks('sends data at a negative offset', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, new Uint8Array([...bytes([8, 2 ** 64 - 2048]), ...DATA])),
);
breaks('sends data behind what was asked for', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, chunkOf(4097, 4096)),
);
breaks('sends the same data twice', STRUCTURED, (peer, request) => {
  peer.chunk(request, 0, Chunk.OFFSET_DATA, chunkOf(4096, 2048));
  peer.chunk(request, 1, Chunk.OFFSET_DATA, chunkOf(4096 + 1024, 2048));
});
breaks('sends more data than was asked for', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, chunkOf(4096, 16), 0xffff_fff0),
);
breaks('sends a chunk without data', STRUCTURED, (peer, request) =>
  peer.chunk(request, 0, Chunk.OFFSET_DATA, bytes([8, 4096])),
);
breaks('sends a hole that is too long', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_HOLE, bytes([8, 4096], [4, 4097])),
);
breaks('sends a hole of another length than holes have', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_HOLE, new Uint8Array(64)),
);
breaks('sends a status for a read', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.BLOCK_STATUS, bytes([4, 3], [4, 4096], [4, 0])),
);
breaks('sends a chunk of an unknown type', STRUCTURED, (peer, request) => peer.chunk(request, 1, 77));
breaks('ends nothing with an empty chunk', STRUCTURED, (peer, request) => peer.chunk(request, 0, Chunk.NONE));
breaks('sends an error too long to be one', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.ERROR, new Uint8Array(8), 1 << 20),
);
breaks('sends an error whose message is longer than it', STRUCTURED, (peer, request) =>
  peer.chunk(request, 1, Chunk.ERROR, bytes([4, 5], [2, 100], 65)),
);
breaks('sends chunks of 2^53 bytes', EXTENDED, (peer, request) =>
  peer.chunk(request, 1, Chunk.OFFSET_DATA, new Uint8Array(8), 2 ** 53),
);
breaks('sends data in more pieces than can be', STRUCTURED, (peer, request) => {
  for (let i = 0; i < 2000; i++) peer.chunk(request, 0, Chunk.OFFSET_DATA, chunkOf(4096 + 2 * i, 1));
});
breaks('sends errors without end', STRUCTURED, (peer, request) => {
  for (let i = 0; i < 6000; i++) peer.chunk(request, 0, Chunk.ERROR, bytes([4, 5], [2, 0]));
});

const status = async (_context: AioContext, blk: BlockBackend): Promise<void> => {
  await blk.blockStatus(0, 4096, new BlockStatus());
};
breaks(
  'tells the status of a context that was not asked for (2020-1711)',
  STRUCTURED,
  statusReply([4, 4], [4, 4096], [4, 0]),
  status,
);
breaks('tells a status without extents', STRUCTURED, statusReply([4, 3]), status);
breaks('tells a status with an empty extent', STRUCTURED, statusReply([4, 3], [4, 0], [4, 0]), status);
breaks('tells a status with half an extent', STRUCTURED, statusReply([4, 3], [4, 512]), status);
breaks('tells no status', STRUCTURED, (peer, request) => peer.chunk(request, 1, Chunk.NONE), status);
breaks(
  'tells a status twice',
  STRUCTURED,
  (peer, request) => {
    for (const flags of [0, 1]) peer.chunk(request, flags, Chunk.BLOCK_STATUS, bytes([4, 3], [4, 4096], [4, 0]));
  },
  status,
);
breaks(
  'counts extents wrongly',
  EXTENDED,
  (peer, request) => peer.chunk(request, 1, Chunk.BLOCK_STATUS_EXT, bytes([4, 3], [4, 2], [8, 4096], [8, 0])),
  status,
);

breaks(
  'tells an extent of 2^63 bytes',
  EXTENDED,
  (peer, request) => peer.chunk(request, 1, Chunk.BLOCK_STATUS_EXT, bytes([4, 3], [4, 1], [8, 2 ** 63], [8, 0])),
  status,
);

function statusReply(
  ...parts: readonly (readonly [2 | 4 | 8, number])[]
): (peer: FakePeer, request: FakeRequest) => void {
  return (peer, request) => peer.chunk(request, 1, Chunk.BLOCK_STATUS, bytes(...parts));
}

inContext('data in pieces, in any order, with holes, is put together', async (context) => {
  const script: Script = async (peer) => {
    await peer.handshake(STRUCTURED);
    const request = (await peer.request())!;
    peer.chunk(request, 0, Chunk.OFFSET_DATA, chunkOf(4096 + 3000, 1096));
    peer.chunk(request, 0, Chunk.OFFSET_DATA, chunkOf(4096, 1000));
    peer.chunk(request, 0, Chunk.OFFSET_HOLE, bytes([8, 4096 + 1000], [4, 2000]));
    peer.chunk(request, 1, Chunk.NONE);
    await peer.request();
  };
  await withClient(context, script, {}, async (blk) => {
    const expected = new Uint8Array(4096).fill(9).fill(0, 1000, 3000);
    assert.deepEqual(await read(context, blk), expected);
  });
});

inContext("the server's error is the request's, whatever data comes with it", async (context) => {
  const script: Script = async (peer) => {
    await peer.handshake(STRUCTURED);
    let request = (await peer.request())!;
    peer.chunk(request, 0, Chunk.OFFSET_DATA, chunkOf(4096, 100));
    peer.chunk(request, 1, Chunk.ERROR_OFFSET, bytes([4, NbdError.ENOSPC], [2, 1], 65, [8, 5000]));
    request = (await peer.request())!;
    peer.chunk(request, 1, 0x8077, bytes([4, 0], [2, 0], 1, 2, 3));
    request = (await peer.request())!;
    peer.chunk(request, 1, Chunk.ERROR, bytes([4, 0], [2, 0]));
    await peer.request();
  };
  await withClient(context, script, {}, async (blk, fake) => {
    await assert.rejects(read(context, blk), { code: 'ENOSPC' });
    await assert.rejects(read(context, blk), { code: 'EIO' });
    await assert.rejects(read(context, blk), { code: 'EIO' });
    assert.equal(fake.connections, 1);
  });
});

inContext('a status of more extents than are looked at is asked for piece by piece', async (context) => {
  let asked = 0;
  const script: Script = async (peer) => {
    await peer.handshake({ ...STRUCTURED, size: 2 ** 30 });
    for (let request = await peer.request(); request?.type === Command.BLOCK_STATUS; request = await peer.request()) {
      asked++;
      const extents: (readonly [4, number])[] = [[4, 3]];
      for (let i = 0; i < 10_000; i++) extents.push([4, 512], [4, (request.offset / 512 + i) % 2 === 0 ? 3 : 0]);
      peer.chunk(request, 1, Chunk.BLOCK_STATUS, bytes(...extents));
    }
  };
  await withClient(context, script, {}, async (blk) => {
    const out = new BlockStatus();
    for (let i = 0; i < 20_000; i++) {
      await blk.blockStatus(i * 512, 2 ** 20, out);
      assert.deepEqual([out.length, out.zero], [512, i % 2 === 0]);
    }
    assert.ok(asked >= 3 && asked <= 200, `asked ${asked} times`);
  });
});

inContext('an extent that is longer than the export ends where that does', async (context) => {
  for (const [offer, type, length] of [
    [STRUCTURED, Chunk.BLOCK_STATUS, [4, 0xffff_fe00]],
    [EXTENDED, Chunk.BLOCK_STATUS_EXT, [8, 2 ** 50]],
  ] as const) {
    const script: Script = async (peer) => {
      await peer.handshake({ ...offer, size: 2 ** 20 });
      const request = (await peer.request())!;
      const [size] = length;
      const extents = [[size, 4096], [size, 3], length, [size, 0]] as const;
      peer.chunk(request, 1, type, bytes([4, 3], ...(size === 8 ? [[4, 2] as const] : []), ...extents));
      await peer.request();
    };
    await withClient(context, script, {}, async (blk) => {
      const out = new BlockStatus();
      await blk.blockStatus(0, 2 ** 20, out);
      assert.deepEqual([out.length, out.zero], [4096, true]);
      await blk.blockStatus(4096, 2 ** 20 - 4096, out);
      assert.deepEqual([out.length, out.zero], [2 ** 20 - 4096, false]);
    });
  }
});

inContext('a write that is answered before it was sent whole ends when the kernel lets go of it', async (context) => {
  let answered = false;
  let read = false;
  const script: Script = async (peer) => {
    await peer.handshake({ size: 2 ** 26, flags: TransmissionFlag.HAS_FLAGS });
    const header = await peer.read(REQUEST_SIZE);
    peer.socket.pause();
    peer.write(bytes([4, SIMPLE_REPLY_MAGIC], [4, 0]), header.subarray(8, 16));
    answered = true;
    await new Promise((resolve) => setTimeout(resolve, 50));
    read = true;
    peer.socket.resume();
    await peer.read(2 ** 25);
    await peer.request();
  };
  await withClient(context, script, {}, async (blk) => {
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(2 ** 25)));
    await blk.write(0, Iov.of(memory));
    assert.deepEqual([answered, read], [true, true]);
  });
});

inContext('a server that ends the connection under each request is not asked for ever', async (context) => {
  const script: Script = async (peer) => {
    await peer.handshake();
    await peer.request();
  };
  await withClient(context, script, { 'reconnect-delay': 1 }, async (blk, fake) => {
    await assert.rejects(read(context, blk), { code: 'EIO' });
    assert.ok(fake.connections > 1 && fake.connections < 12, `${fake.connections} connections`);
  });
});

inContext('a server that ends the connection under each flush is not asked for ever', async (context) => {
  const script: Script = async (peer) => {
    await peer.handshake();
    for (let request = await peer.request(); request?.type === Command.WRITE; request = await peer.request()) {
      peer.simple(request, NbdError.EIO);
    }
  };
  await withFake(script, async (options, fake) => {
    const blk = await BlockBackend.open(context, { ...options, 'reconnect-delay': 1 });
    // It may have changed something, so that there is something to flush.
    await assert.rejects(blk.write(0, Iov.of(context.backend.memory(new Uint8Array(new SharedArrayBuffer(512))))));
    await assert.rejects(blk.flush(), { code: 'EIO', message: /ended the connection/ });
    assert.ok(fake.connections > 1 && fake.connections < 12, `${fake.connections} connections`);
    await assert.rejects(blk.close(), { code: 'EIO' });
  });
});

inContext('a server that is about to end is left, and the request done elsewhere', async (context) => {
  const script: Script = async (peer, index) => {
    if (index > 0) return await honest(peer, {});
    await peer.handshake();
    peer.simple((await peer.request())!, NbdError.ESHUTDOWN);
    await peer.request();
  };
  await withClient(context, script, { 'reconnect-delay': 5 }, async (blk) => {
    assert.deepEqual(await read(context, blk), DATA);
  });
});

inContext('zeroes that must be quick are refused where the server does not offer that', async (context) => {
  await withClient(
    context,
    (peer) => honest(peer, {}),
    {},
    async (blk) => {
      await assert.rejects(blk.writeZeroes(0, 4096, RequestFlags.NO_FALLBACK), { code: 'ENOTSUP' });
      await blk.writeZeroes(0, 4096);
    },
  );
});

inContext('servers of long ago, with EXPORT_NAME, are spoken to', async (context) => {
  for (const flags of [0, 1, 3]) {
    const script: Script = async (peer) => {
      await peer.greet(flags);
      for (let next = await peer.option(); next; next = await peer.option()) {
        if (next.option !== Option.EXPORT_NAME) {
          peer.reply(next.option, OptionReply.ERR_UNSUP);
          continue;
        }
        peer.write(bytes([8, 8192], [2, 1]), new Uint8Array((flags & 2) !== 0 ? 0 : 124));
        const request = (await peer.request())!;
        peer.simple(request, 0, DATA);
        await peer.request();
        return;
      }
    };
    await withClient(context, script, {}, async (blk) => {
      assert.equal(blk.length, 8192);
      assert.deepEqual(await read(context, blk), DATA);
    });
  }
});
