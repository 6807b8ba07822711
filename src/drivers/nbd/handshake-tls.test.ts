/** The client asks for TLS: a server, or somebody in between, that does not want it gets no plain text. */
import assert from 'node:assert/strict';
import { inContext } from '../../aio/testing.ts';
import { BlockError } from '../../base/errors.ts';
import { BlockBackend } from '../../block/backend.ts';
import { Option, OptionReply } from '../../proto/nbd/constants.ts';
import { encodeOptionReply } from '../../proto/nbd/option.ts';
import './testing.ts';
import { type FakePeer, withFake } from './testing-fake.ts';

/** The options that the client said in plain text. */
type Said = number[];

function refuses(title: string, script: (peer: FakePeer) => Promise<Said>, code: string, message: RegExp): void {
  inContext(`asking for TLS, a server that ${title} is refused, and nothing else is asked of it`, async (context) => {
    let said: Said = [];
    const listen = async (peer: FakePeer): Promise<void> => {
      said = await script(peer);
    };
    await withFake(listen, async (options) => {
      const opening = BlockBackend.open(context, { ...options, 'tls-creds': { type: 'anon' } });
      await assert.rejects(opening, (error: unknown) => {
        assert.ok(error instanceof BlockError);
        assert.equal(error.code, code);
        assert.match(error.message, /^Could not open 'nbds\+unix:/);
        assert.match(error.message, message);
        return true;
      });
    });
    assert.ok(said.every((option) => option === Option.STARTTLS));
  });
}

/** Answers each option with `answer`. */
const answering =
  (answer: (peer: FakePeer, option: number) => void, flags?: number) =>
  async (peer: FakePeer): Promise<Said> => {
    const said: Said = [];
    await peer.greet(flags);
    for (let next = await peer.option(); next; next = await peer.option()) {
      said.push(next.option);
      answer(peer, next.option);
    }
    return said;
  };

for (const [name, type] of [
  ['does not know it', OptionReply.ERR_UNSUP],
  ['forbids it', OptionReply.ERR_POLICY],
  ['says that it is invalid', OptionReply.ERR_INVALID],
  ['wants TLS and refuses it', OptionReply.ERR_TLS_REQD],
] as const) {
  refuses(
    name,
    answering((peer, option) => peer.reply(option, type)),
    'EACCES',
    /does not have TLS, which was asked for/,
  );
}
// As one that takes STARTTLS out of the stream and answers in the server's place.
refuses(
  'only knows the old style',
  answering(() => undefined, 0),
  'EACCES',
  /does not have TLS/,
);
refuses(
  'answers with something else',
  answering((peer, option) => peer.reply(option, OptionReply.INFO)),
  'EINVAL',
  /refuses with 0x3/,
);
refuses(
  'says something in plain text behind its answer',
  answering((peer, option) =>
    peer.write(encodeOptionReply(option, OptionReply.ACK), encodeOptionReply(Option.GO, OptionReply.ACK)),
  ),
  'EPROTO',
  /more than it was asked/,
);
refuses(
  'agrees and leaves',
  async (peer) => {
    await peer.greet();
    const next = await peer.option();
    peer.reply(Option.STARTTLS, OptionReply.ACK);
    await peer.read(1);
    return [next!.option];
  },
  'ECONNRESET',
  /ended the connection in the TLS handshake/,
);
refuses(
  'agrees and goes on in plain text',
  async (peer) => {
    await peer.greet();
    const next = await peer.option();
    peer.reply(Option.STARTTLS, OptionReply.ACK);
    await peer.read(1);
    peer.reply(Option.EXTENDED_HEADERS, OptionReply.ACK);
    await peer.closed;
    return [next!.option];
  },
  'EPROTO',
  /TLS handshake failed/,
);
