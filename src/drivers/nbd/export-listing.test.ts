/** What a server says of its exports, and servers that never stop saying it. */
import assert from 'node:assert/strict';
import { inContext } from '../../aio/testing.ts';
import { ownOptions } from '../../block/options.ts';
import { Option, OptionReply } from '../../proto/nbd/constants.ts';
import { encodeInfoBlockSize, encodeInfoExport, encodeMetaContext, encodeServer } from '../../proto/nbd/option.ts';
import { Connector } from './connector.ts';
import { nbdDriver } from './driver.ts';
import type { ListedExport } from './export-listing.ts';
import { type NbdOptions, nbdTarget } from './options.ts';
import './testing.ts';
import { type FakePeer, type Script, withFake } from './testing-fake.ts';

/** Lists the exports of a server that has `script`. */
function listed(title: string, script: Script, check: (list: () => Promise<ListedExport[]>) => Promise<void>): void {
  inContext(title, async (context) => {
    await withFake(script, async (options) => {
      const { server } = options as unknown as { readonly server: object };
      const own = ownOptions(nbdDriver as never, { driver: 'nbd', server }) as unknown as NbdOptions;
      const connector = await Connector.of(context, nbdTarget(own));
      await check(() => connector.list());
    });
  });
}

type Answers = Readonly<Record<number, (peer: FakePeer, payload: Uint8Array) => void>>;

/** Answers the options that it has answers for; others are unknown to it. */
function answering(answers: Answers): Script {
  return async (peer) => {
    await peer.greet();
    for (let next = await peer.option(); next; next = await peer.option()) {
      const { option, payload } = next;
      if (answers[option]) answers[option](peer, payload);
      else peer.reply(option, OptionReply.ERR_UNSUP);
    }
  };
}

const agree = (peer: FakePeer): void => peer.reply(Option.STRUCTURED_REPLY, OptionReply.ACK);
const names = (...all: readonly (readonly [string, string])[]): Answers => ({
  [Option.LIST](peer) {
    for (const [name, about] of all) peer.reply(Option.LIST, OptionReply.SERVER, encodeServer(name, about));
    peer.reply(Option.LIST, OptionReply.ACK);
  },
});

const whole: Answers = {
  ...names(['', ''], ['disk', 'a disk']),
  [Option.STRUCTURED_REPLY]: agree,
  [Option.INFO](peer) {
    peer.reply(Option.INFO, OptionReply.INFO, encodeInfoExport(2 ** 40, 0x8f));
    peer.reply(Option.INFO, OptionReply.INFO, encodeInfoBlockSize(1, 4096, 65536));
    peer.reply(Option.INFO, OptionReply.ACK);
  },
  [Option.LIST_META_CONTEXT](peer) {
    peer.reply(Option.LIST_META_CONTEXT, OptionReply.META_CONTEXT, encodeMetaContext(0, 'base:allocation'));
    peer.reply(Option.LIST_META_CONTEXT, OptionReply.ACK);
  },
};

listed('all that a server says of its exports is listed', answering(whole), async (list) => {
  const blocks = { type: 'block-size', minimum: 1, preferred: 4096, maximum: 65536 };
  const same = { size: 2 ** 40, flags: 0x8f, blocks, contexts: ['base:allocation'] };
  assert.deepEqual(await list(), [
    { name: '', description: '', ...same },
    { name: 'disk', description: 'a disk', ...same },
  ]);
});

listed('a server that knows names only has them listed', answering(names(['disk', ''])), async (list) => {
  const none = { size: undefined, flags: undefined, blocks: undefined, contexts: [] };
  assert.deepEqual(await list(), [{ name: 'disk', description: '', ...none }]);
});

listed(
  'names and descriptions may be as long as they can be',
  answering(names(['x'.repeat(4096), 'y'.repeat(4096)])),
  async (list) => {
    const [{ name, description }] = (await list()) as [ListedExport];
    assert.deepEqual([name.length, description.length], [4096, 4096]);
  },
);

const REFUSED: readonly (readonly [title: string, answers: Answers, code: string, why: RegExp])[] = [
  ['does not list', {}, 'EINVAL', /it refuses with 0x80000001/],
  [
    'does not allow it',
    { [Option.LIST]: (peer) => peer.reply(Option.LIST, OptionReply.ERR_POLICY) },
    'EACCES',
    /not allow/,
  ],
  [
    'answers with something else',
    { [Option.LIST]: (peer) => peer.reply(Option.LIST, OptionReply.INFO) },
    'EPROTO',
    /is not one/,
  ],
  [
    'has a reply that is too long',
    { [Option.LIST]: (peer) => peer.reply(Option.LIST, OptionReply.SERVER, new Uint8Array(9000)) },
    'EPROTO',
    /has 9000 bytes/,
  ],
  [
    'has names without end',
    names(...Array.from({ length: 4097 }, (_, i) => [`${i}`, ''] as const)),
    'EPROTO',
    /without end/,
  ],
  [
    'has contexts without end',
    {
      ...whole,
      [Option.LIST_META_CONTEXT](peer) {
        for (let i = 0; i < 1025; i++)
          peer.reply(Option.LIST_META_CONTEXT, OptionReply.META_CONTEXT, encodeMetaContext(i, `x:${i}`));
      },
    },
    'EPROTO',
    /without end/,
  ],
];

for (const [title, answers, code, message] of REFUSED) {
  listed(`a server that ${title} is refused`, answering(answers), async (list) => {
    await assert.rejects(list(), { code, message });
  });
}
