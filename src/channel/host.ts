/** A BlockBackend that other threads may use: its channels, and the one bottom half that serves them all. */
import { type MessagePort, receiveMessageOnPort, threadId } from 'node:worker_threads';
import type { BottomHalf } from '../aio/bottom-half.ts';
import type { AioContext } from '../aio/context.ts';
import { globalMutex } from '../aio/global-mutex.ts';
import { Gate } from '../aio/op.ts';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Bytes } from '../base/units.ts';
import type { BackendUser, BlockBackend } from '../block/backend.ts';
import type { BlockRequest } from '../block/request.ts';
import {
  type BlkIdentity,
  type ChannelOffer,
  DiskWord,
  type HomeName,
  isChannelWords,
  type MovedChannel,
  newDiskWords,
  type SharedWords,
  setDiskLength,
  type ToClient,
  type ToHome,
  Word,
} from './layout.ts';
import { Lender } from './lender.ts';
import { type ChannelOwner, ServerChannel } from './server-channel.ts';

/** Threads (handles, to be exact) that use one BlockBackend: 256 channels are 18 MiB at most. */
export const CHANNELS_MAX = 256;

let ids = 0;
const hosts = new Map<number, ChannelHost>();

/** The host of that identity, when it is in this thread (and in that context, if one is given) and stays there. */
export function localHost({ homeThread, id }: BlkIdentity, context: AioContext | undefined): ChannelHost | undefined {
  const host = homeThread === threadId ? hosts.get(id) : undefined;
  if (!host || host.frozen || (context && host.blk.context !== context)) return undefined;
  return host;
}

/** All methods: home thread. Close it before the BlockBackend. */
export class ChannelHost implements BackendUser, ChannelOwner {
  readonly blk: BlockBackend;
  /** @internal */ refusal = 0;
  readonly #id = ++ids;
  readonly #bh: BottomHalf;
  readonly #disk: SharedWords;
  readonly #channels = new Map<ServerChannel, MessagePort | undefined>();
  readonly #mutex = globalMutex();
  /** @internal */ readonly lender: Lender;
  #quiet: Gate | undefined;
  #closing: Promise<void> | undefined;
  #frozen = false;

  /** `disk`: its words, where it has been in another home before. */
  constructor(blk: BlockBackend, disk: SharedWords = newDiskWords()) {
    this.blk = blk;
    this.#disk = disk;
    this.#disk[DiskWord.READ_ONLY] = blk.readOnly ? 1 : 0;
    setDiskLength(this.#disk, blk.length);
    this.lender = new Lender(blk, this.#disk, () => this.#words());
    this.#bh = blk.context.bottomHalf(() => this.#serve(), `channels of ${blk.describe}`);
    blk.context.identify();
    blk.users.add(this);
    hosts.set(this.#id, this);
  }

  /** For descriptors: see BlkHandle. */
  get identity(): BlkIdentity {
    return {
      name: this.blk.name || (this.blk.root?.name ?? ''),
      id: this.#id,
      homeThread: threadId,
      home: this.blk.context.remote(),
      takeUp: this.#bh.remote(),
      disk: this.#disk,
      counters: this.blk.stats.words,
      mutex: this.#mutex.words,
    };
  }

  *#words(): Iterable<SharedWords> {
    for (const { words } of this.#channels.keys()) yield words;
  }

  /** Channels that are open. */
  get channels(): number {
    return this.#channels.size;
  }

  /** Begins to serve a new channel, whose descriptor says that home is `named` (default: this one). What cannot be
   *  served is told so through its port. */
  introduce({ words, port }: ChannelOffer, named?: HomeName): void {
    const refuse = (errno: number, why: string): void => {
      port.postMessage({ kind: 'end', error: new BlockError(errno, `Could not open a handle: ${why}`).toPlain() });
      port.close();
    };
    if (this.refusal !== 0) refuse(Errno.ESHUTDOWN, `${this.blk.describe} is closed`);
    else if (!isChannelWords(words)) refuse(Errno.EINVAL, 'this is no channel');
    else if (this.#channels.size >= CHANNELS_MAX) refuse(Errno.EMFILE, `${CHANNELS_MAX} are open`);
    else {
      this.#open(words, port);
      if (named && (named.homeThread !== threadId || named.id !== this.#id)) this.#announce(words, port);
    }
  }

  /** Says where home is to a client that takes another for it. */
  #announce(words: SharedWords, port: MessagePort): void {
    const epoch = (Atomics.load(words, Word.HOME_EPOCH) + 1) | 0;
    port.postMessage({ kind: 'home', identity: this.identity, epoch } satisfies ToClient);
    // Only now: who sees it finds the message.
    Atomics.store(words, Word.HOME_EPOCH, epoch);
  }

  #open(words: SharedWords, port: MessagePort): ServerChannel {
    const channel = new ServerChannel(this, words, {
      read: () => {
        for (let got = receiveMessageOnPort(port); got; got = receiveMessageOnPort(port))
          receive(got.message as ToHome);
      },
      post: (message) => port.postMessage(message),
    });
    const receive = (message: ToHome): void => {
      if (message.kind === 'introduce') this.introduce(message.offer, message.home);
      else if (message.kind === 'close') this.#drop(channel);
      else channel.receive(message);
    };
    this.#channels.set(channel, port);
    port.on('message', receive);
    port.on('close', () => this.#died(channel));
    // What is served does not keep a thread alive; who wants it served does.
    port.unref();
    this.schedule();
    return channel;
  }

  // Moving to another home: docs/CHANNELS.md.

  /** True while nothing is taken in, since the disk may be about to leave. */
  get frozen(): boolean {
    return this.#frozen;
  }

  freeze(): void {
    this.#frozen = true;
  }

  /** The disk stays. */
  thaw(): void {
    this.#frozen = false;
    this.schedule();
  }

  /** Ends the host of a frozen disk whose root is drained; answers its channels. `queue`: see ServerChannel.depart. */
  depart(queue: readonly BlockRequest[]): MovedChannel[] {
    assert(this.#frozen, 'a host departs that takes requests in');
    this.refusal = -Errno.ESHUTDOWN;
    const channels: MovedChannel[] = [];
    for (const [channel, port] of this.#channels) {
      // A handle of this thread vetoes.
      assert(port, 'a local channel was moved');
      port.removeAllListeners();
      channels.push({ ...channel.depart(queue), words: channel.words, port });
    }
    this.#channels.clear();
    this.#end();
    return channels;
  }

  /** The disk does not come here after all: its words are another home's. */
  giveUp(): void {
    assert(this.#channels.size === 0, 'a host with channels was given up');
    this.#end();
  }

  /** Goes on with the channels of the disk's last home. */
  arrive(channels: readonly MovedChannel[]): void {
    const opened = channels.map((moved) => {
      const channel = this.#open(moved.words, moved.port);
      channel.arrive(moved);
      return channel;
    });
    for (const [i, { waiting, words, port }] of channels.entries()) {
      this.#announce(words, port);
      opened[i]!.goOn(waiting);
    }
    // What was put in before the new home was known is announced to nobody.
    this.schedule();
  }

  /** @internal A channel without another thread at its end: what it has to say goes to `post`. */
  local(words: SharedWords, post: (message: ToClient) => void): ServerChannel {
    assert(this.refusal === 0, 'a closed disk was attached to');
    const channel = new ServerChannel(this, words, { read: () => undefined, post });
    this.#channels.set(channel, undefined);
    return channel;
  }

  /** @internal */
  release(channel: ServerChannel): void {
    this.#drop(channel);
  }

  /** Takes no more requests, ends drained sections of its clients, waits for what is under way, lets go of all. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.refusal = -Errno.ESHUTDOWN;
    Atomics.store(this.#disk, DiskWord.CLOSED, 1);
    for (const channel of this.#channels.keys()) channel.endDrains();
    this.lender.stop();
    for (;;) {
      this.#serve();
      if (!this.lender.busy && [...this.#channels.keys()].every((channel) => channel.inFlight === 0)) break;
      this.#quiet = new Gate();
      await this.#quiet.promise;
    }
    const error = new BlockError(Errno.ESHUTDOWN, `Could not use ${this.blk.describe}: it is closed`).toPlain();
    const end: ToClient = { kind: 'end', error };
    for (const [channel, port] of [...this.#channels]) {
      port?.postMessage(end);
      this.#drop(channel);
    }
    this.#end();
  }

  #end(): void {
    this.lender.end();
    this.blk.users.delete(this);
    hosts.delete(this.#id);
    this.#bh.delete();
  }

  // ChannelOwner.

  schedule(): void {
    if (!this.#bh.deleted) this.#bh.schedule();
  }

  idle(): void {
    this.#quiet?.open();
    this.#quiet = undefined;
  }

  // BackendUser.

  onDrainBegin(): void {
    this.lender.stop();
  }

  drainBusy(): boolean {
    return this.lender.busy;
  }

  onDrainEnd(): void {
    this.lender.resume();
  }

  onResize(length: Bytes): void {
    setDiskLength(this.#disk, length);
    for (const channel of this.#channels.keys()) channel.tell({ kind: 'resized' });
  }

  cannotMove(): string | undefined {
    return [...this.#channels.values()].includes(undefined) ? 'a handle in its own thread uses it' : undefined;
  }

  #serve(): void {
    this.lender.look();
    if (this.refusal !== 0 && !this.lender.busy) this.idle();
    for (const channel of this.#channels.keys()) {
      if (!this.#frozen) channel.takeUp();
      channel.publish();
    }
  }

  /** The port has ended and nobody has said why. */
  #died(channel: ServerChannel): void {
    if (!this.#channels.has(channel)) return;
    const client = Atomics.load(channel.words, Word.CLIENT);
    if (client !== 0) this.#mutex.threadDied(client - 1);
    this.#drop(channel);
  }

  #drop(channel: ServerChannel): void {
    const port = this.#channels.get(channel);
    this.#channels.delete(channel);
    channel.abandon();
    port?.close();
  }
}
