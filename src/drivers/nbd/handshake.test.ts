/** Handshakes with servers that lie: refused with one error that says why, in bounded memory and time. */
import assert from 'node:assert/strict';
import { inContext } from '../../aio/testing.ts';
import { BlockError } from '../../base/errors.ts';
import { BlockBackend } from '../../block/backend.ts';
import { Option, OptionReply } from '../../proto/nbd/constants.ts';
import { encodeInfoBlockSize, encodeInfoExport, encodeMetaContext, encodeOptionReply } from '../../proto/nbd/option.ts';
import './testing.ts';
import { bytes, type FakeOffer, type FakePeer, withFake } from './testing-fake.ts';

function refuses(title: string, script: (peer: FakePeer) => Promise<void>, code: string, message: RegExp): void {
  inContext(`a server that ${title} is refused`, async (context) => {
    await withFake(script, async (options, fake) => {
      await assert.rejects(BlockBackend.open(context, options), (error: unknown) => {
        assert.ok(error instanceof BlockError);
        assert.equal(error.code, code);
        assert.match(error.message, /^Could not open 'nbd\+unix:/);
        assert.match(error.message, message);
        return true;
      });
      assert.equal(fake.connections, 1);
    });
  });
}

/** Answers options with `answer` from the `from`-th on, and before as if they were unknown. */
function answering(which: number, answer: (peer: FakePeer) => void): (peer: FakePeer) => Promise<void> {
  return async (peer) => {
    await peer.greet();
    for (let next = await peer.option(); next; next = await peer.option()) {
      if (next.option === which) answer(peer);
      else if (next.option === Option.STRUCTURED_REPLY) peer.reply(next.option, OptionReply.ACK);
      else peer.reply(next.option, OptionReply.ERR_UNSUP);
    }
  };
}

const go = (...payloads: readonly Uint8Array[]): ((peer: FakePeer) => Promise<void>) =>
  answering(Option.GO, (peer) => {
    for (const payload of payloads) peer.reply(Option.GO, OptionReply.INFO, payload);
    peer.reply(Option.GO, OptionReply.ACK);
  });
const offers =
  (offer: FakeOffer): ((peer: FakePeer) => Promise<void>) =>
  (peer) =>
    peer.handshake(offer);

refuses('closes at once', async () => undefined, 'ECONNRESET', /ended the connection/);
refuses(
  'greets with something else',
  async (peer) => {
    peer.write(new Uint8Array(64).fill(72));
    await peer.read(1);
  },
  'EPROTO',
  /no NBD server/,
);
refuses(
  'replies to another option',
  answering(Option.GO, (peer) => peer.reply(Option.INFO, OptionReply.ACK)),
  'EPROTO',
  /replies to option 6/,
);
refuses(
  'replies with 4 GiB (2017-2630)',
  answering(Option.GO, (peer) =>
    peer.write(encodeOptionReply(Option.GO, OptionReply.INFO, bytes([4, 0])).fill(0xff, 16, 20)),
  ),
  'EPROTO',
  /has 4294967295 bytes/,
);
refuses(
  'replies without a number',
  answering(Option.GO, (peer) => peer.write(new Uint8Array(20))),
  'EPROTO',
  /wrong number/,
);
refuses(
  'replies without end',
  answering(Option.GO, (peer) => {
    for (let i = 0; i < 200; i++) peer.reply(Option.GO, OptionReply.INFO, bytes([2, 9], 1));
  }),
  'EPROTO',
  /without end/,
);
refuses(
  'names contexts without end',
  answering(Option.SET_META_CONTEXT, (peer) => {
    for (let i = 0; i < 200; i++)
      peer.reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, encodeMetaContext(i, 'base:allocation'));
  }),
  'EPROTO',
  /meta contexts/,
);
refuses(
  'names a context that was not asked for',
  answering(Option.SET_META_CONTEXT, (peer) =>
    peer.reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, encodeMetaContext(1, 'base:other')),
  ),
  'EPROTO',
  /meta contexts/,
);
refuses('says no size (2021-20286)', go(), 'EPROTO', /how large/);
refuses('says half a size', go(bytes([2, 0], [4, 1])), 'EPROTO', /about the export/);
refuses('has 2^63 bytes and more (2023-5215)', offers({ size: 2 ** 63 }), 'EFBIG', /2\^53/);
refuses('has 2^53 bytes', go(bytes([2, 0], [8, 2 ** 53], [2, 1])), 'EFBIG', /2\^53/);
refuses('has no valid flags', offers({ flags: 0 }), 'EPROTO', /flags/);
refuses('has a smallest block of 0', offers({ blocks: [0, 4096, 65536] }), 'EPROTO', /smallest block has 0/);
refuses('has a smallest block of 3', offers({ blocks: [3, 4096, 65536] }), 'EPROTO', /smallest block has 3/);
refuses('has a smallest block of 1 GiB', offers({ blocks: [2 ** 30, 2 ** 30, 2 ** 31] }), 'EPROTO', /smallest block/);
refuses('takes requests of less than a block', offers({ blocks: [4096, 4096, 512] }), 'EPROTO', /longest request/);
refuses('has half a block at the end', offers({ size: 1000, blocks: [512, 4096, 65536] }), 'EPROTO', /not a multiple/);
refuses(
  'has no such export',
  answering(Option.GO, (peer) =>
    peer.reply(Option.GO, OptionReply.ERR_UNKNOWN, new TextEncoder().encode('no\u001b[31m disk')),
  ),
  'ENOENT',
  /no such export \('no\?\[31m disk'\)/,
);
refuses(
  'wants TLS',
  answering(Option.EXTENDED_HEADERS, (peer) => peer.reply(Option.EXTENDED_HEADERS, OptionReply.ERR_TLS_REQD)),
  'EACCES',
  /TLS/,
);
refuses('has it read-only', offers({ flags: 3 }), 'EACCES', /read-only/);
refuses(
  'says more than it was asked',
  async (peer) => {
    await peer.greet();
    for (let next = await peer.option(); next; next = await peer.option()) {
      if (next.option !== Option.GO) peer.reply(next.option, OptionReply.ERR_UNSUP);
      else
        peer.write(
          encodeOptionReply(Option.GO, OptionReply.INFO, encodeInfoExport(4096, 1)),
          encodeOptionReply(Option.GO, OptionReply.INFO, encodeInfoBlockSize(1, 4096, 65536)),
          encodeOptionReply(Option.GO, OptionReply.ACK),
          new Uint8Array(16),
        );
    }
  },
  'EPROTO',
  /more than it was asked/,
);
