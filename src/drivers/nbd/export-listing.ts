/** What exports a server has, and what it says of each. Bounded, whatever it says. */
import type { SocketStream } from '../../aio/socket-stream.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Bytes } from '../../base/units.ts';
import { Info, Option, OptionReply } from '../../proto/nbd/constants.ts';
import {
  decodeInfo,
  decodeMetaContext,
  decodeServer,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from '../../proto/nbd/option.ts';
import { OptionTalk, protocolError, type Reply, refusal, type StartTls, textOf } from './option-talk.ts';

export interface ListedExport {
  readonly name: string;
  /** '' for none. */
  readonly description: string;
  /** Bytes; -1 for 2^53 or more. Undefined where the server does not say. */
  readonly size: Bytes | undefined;
  /** TransmissionFlag. */
  readonly flags: number | undefined;
  readonly blocks: { readonly minimum: Bytes; readonly preferred: Bytes; readonly maximum: Bytes } | undefined;
  /** Metadata contexts that may be asked for. */
  readonly contexts: readonly string[];
}

const EXPORTS_MAX = 4096;
/** Replies to one option about one export. */
const REPLIES_MAX = 1024;

/** Throws BlockError whose message is why, for the end of a sentence that names the server. */
export async function listExports(stream: SocketStream, startTls?: StartTls): Promise<ListedExport[]> {
  const talk = new OptionTalk(stream);
  const fixed = await talk.greet();
  if (startTls) await talk.secure(fixed, startTls);
  if (!fixed) throw new BlockError(Errno.ENOTSUP, 'it is too old to say what exports it has');
  const structured = await talk.agree(Option.STRUCTURED_REPLY);
  await talk.send(encodeOption(Option.LIST));
  const named = await replies(talk, Option.LIST, EXPORTS_MAX, ({ type, payload }) =>
    type === OptionReply.SERVER ? decodeServer(payload) : undefined,
  );
  if ('refused' in named) throw refusal(named.refused.type, textOf(named.refused.payload));
  const exports: ListedExport[] = [];
  for (const { name, description } of named.list) {
    exports.push({
      name,
      description,
      ...(await about(talk, name)),
      contexts: structured ? await contexts(talk, name) : [],
    });
  }
  await talk.send(encodeOption(Option.ABORT));
  await stream.flush();
  return exports;
}

/** What `INFO` says; nothing where the server does not know that option, or has the export no more. */
async function about(talk: OptionTalk, name: string): Promise<Pick<ListedExport, 'size' | 'flags' | 'blocks'>> {
  await talk.send(encodeOption(Option.INFO, encodeInfoRequest(name, [Info.BLOCK_SIZE])));
  const infos = await replies(talk, Option.INFO, REPLIES_MAX, ({ type, payload }) =>
    type === OptionReply.INFO ? decodeInfo(payload) : undefined,
  );
  let size: Bytes | undefined;
  let flags: number | undefined;
  let blocks: ListedExport['blocks'];
  for (const info of 'refused' in infos ? [] : infos.list) {
    if (info.type === 'export') ({ size, flags } = info);
    else if (info.type === 'block-size') blocks = info;
  }
  return { size, flags, blocks };
}

async function contexts(talk: OptionTalk, name: string): Promise<readonly string[]> {
  await talk.send(encodeOption(Option.LIST_META_CONTEXT, encodeMetaContextRequest(name, [])));
  const found = await replies(talk, Option.LIST_META_CONTEXT, REPLIES_MAX, ({ type, payload }) =>
    type === OptionReply.META_CONTEXT ? decodeMetaContext(payload) : undefined,
  );
  return 'refused' in found ? [] : found.list.map((context) => context.name);
}

/** The replies to an option, up to its end. `decode` answers undefined for what is none. */
async function replies<T extends object>(
  talk: OptionTalk,
  option: number,
  most: number,
  decode: (reply: Reply) => T | undefined,
): Promise<{ readonly list: T[] } | { readonly refused: Reply }> {
  const list: T[] = [];
  for (;;) {
    const reply = await talk.reply(option);
    if (reply.type === OptionReply.ACK) return { list };
    if (reply.type >= OptionReply.ERR_UNSUP) return { refused: reply };
    const value = decode(reply);
    if (value === undefined) throw protocolError(`its reply to option ${option} is not one`);
    if (list.length >= most) throw protocolError('it answers without end');
    list.push(value);
  }
}
