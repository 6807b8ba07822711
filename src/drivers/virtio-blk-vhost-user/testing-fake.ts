/** For tests: a back-end that says and does whatever a test wants. */
import type { AioListener, AioSocket } from '../../aio/backend.ts';
import type { AioContext } from '../../aio/context.ts';
import { FdStream } from '../../aio/fd-stream.ts';
import { WaitOp } from '../../aio/op.ts';
import * as eventfd from '../../native/eventfd.ts';
import { close } from '../../native/file.ts';
import { NativeMemory } from '../../native/memory.ts';
import { sendFds } from '../../native/socket.ts';
import { FrontRequest, HEADER_BYTES, HeaderFlag, ProtocolFeature } from '../../proto/vhost-user/constants.ts';
import {
  decodeHeader,
  decodeMemoryTable,
  decodeVringAddress,
  encodeBits,
  encodeConfigPart,
  encodeMessage,
  encodeU64,
} from '../../proto/vhost-user/message.ts';
import { type BlkConfig, encodeBlkConfig } from '../../proto/virtio-blk/config.ts';
import { BlkFeature, BlkStatus, HighFeature, RingFeature } from '../../proto/virtio-blk/constants.ts';

const CONFIG: BlkConfig = {
  ...{ capacity: 2048, sizeMax: 65536, segMax: 126, blockBytes: 512, physicalBlockExponent: 0, optimalBlocks: 8 },
  ...{ writeback: true, queues: 1, maxDiscardSectors: 64, discardAlignmentSectors: 1, maxZeroSectors: 64 },
  zeroMayUnmap: true,
};

/** Answers one message; undefined: nobody answers it. */
type Answer = () => Uint8Array | undefined;

export class FakeBackEnd {
  low: number =
    BlkFeature.SIZE_MAX | BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH | RingFeature.PROTOCOL_FEATURES;
  high: number = HighFeature.VERSION_1;
  protocol: number = ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ;
  config: BlkConfig = CONFIG;
  /** In place of the answer that is right. */
  readonly answers = new Map<number, Answer>();
  /** Messages at which it leaves. */
  readonly leaves = new Set<number>();
  connections = 0;
  socket: AioSocket | undefined;
  /** Where the back-end's own messages go. */
  channel = -1;
  readonly #context: AioContext;
  #listener: AioListener | undefined;
  #memory: NativeMemory | undefined;
  #base = 0;
  #call = -1;
  #descriptors = 0;
  #avail = 0;
  #used = 0;

  constructor(context: AioContext) {
    this.#context = context;
  }

  async listen(path: string): Promise<void> {
    const listener = await this.#context.backend.listen({ kind: 'unix', path });
    this.#listener = listener;
    this.#context.run('fake back-end', async () => {
      const op = new WaitOp();
      for (;;) {
        const accepted = op.wait();
        listener.accept(op);
        if ((await accepted) < 0) return;
        this.socket = listener.takeAccepted();
        this.connections++;
        await this.#serve(this.socket);
        await this.socket.close();
        for (const fd of [this.channel, this.#call]) if (fd >= 0) close(fd);
        this.channel = -1;
        this.#call = -1;
        this.#memory?.release();
        this.#memory = undefined;
      }
    });
  }

  async close(): Promise<void> {
    this.socket?.shutdown();
    await this.#listener?.close();
  }

  async #serve(socket: AioSocket): Promise<void> {
    const stream = new FdStream(this.#context, socket);
    for (;;) {
      const fds: number[] = [];
      const head = await stream.read(HEADER_BYTES, fds, 8);
      if (!head) return;
      const { request, flags, length } = decodeHeader(head);
      const payload = await stream.read(length, [], 0);
      if (!payload || this.leaves.has(request)) {
        for (const fd of fds) close(fd);
        socket.shutdown();
        return;
      }
      this.#take(request, payload, fds);
      const own = this.#ownAnswer(request);
      const acknowledged = (flags & HeaderFlag.NEED_REPLY) !== 0 ? encodeU64(0) : undefined;
      const other = this.answers.get(request);
      const answer = other ? other() : (own ?? acknowledged);
      if (answer) await stream.send(encodeMessage(request, answer, HeaderFlag.REPLY));
    }
  }

  #ownAnswer(request: number): Uint8Array | undefined {
    const R = FrontRequest;
    if (request === R.GET_FEATURES) return encodeBits(this.low, this.high);
    if (request === R.GET_PROTOCOL_FEATURES) return encodeBits(this.protocol, 0);
    if (request === R.GET_QUEUE_NUM) return encodeU64(1);
    if (request === R.GET_CONFIG) return encodeConfigPart(0, encodeBlkConfig(this.config));
    return undefined;
  }

  #take(request: number, payload: Uint8Array, fds: number[]): void {
    const R = FrontRequest;
    if (request === R.SET_MEM_TABLE) {
      this.#avail = 0;
      const [region] = decodeMemoryTable(payload)!;
      this.#memory = NativeMemory.ofFile(fds[0]!, region!.length) as NativeMemory;
      this.#base = region!.user;
    } else if (request === R.SET_VRING_ADDR) {
      const address = decodeVringAddress(payload)!;
      this.#descriptors = address.descriptors - this.#base;
      this.#avail = address.available - this.#base;
      this.#used = address.used - this.#base;
    } else if (request === R.SET_VRING_CALL) this.#call = fds.shift()!;
    else if (request === R.SET_BACKEND_REQ_FD) this.channel = fds.shift()!;
    for (const fd of fds) close(fd);
  }

  // The ring, as the device sees it.

  get view(): DataView {
    return this.#memory!.view;
  }

  /** Chains made available so far. */
  get available(): number {
    return this.#memory === undefined ? 0 : this.view.getUint16(this.#avail + 2, true);
  }

  /** The head of the n-th chain. */
  head(n: number): number {
    return this.view.getUint16(this.#avail + 4 + 2 * (n % 256), true);
  }

  /** Where descriptor `index` points to, in the shared memory. */
  target(index: number): number {
    const at = this.#descriptors + 16 * index;
    return this.view.getUint32(at + 4, true) * 2 ** 32 + this.view.getUint32(at, true) - this.#base;
  }

  next(index: number): number {
    return this.view.getUint16(this.#descriptors + 16 * index + 14, true);
  }

  /** Writes over the link of a descriptor, and over its flags. */
  spoil(index: number, flags: number, next: number): void {
    this.view.setUint16(this.#descriptors + 16 * index + 12, flags, true);
    this.view.setUint16(this.#descriptors + 16 * index + 14, next, true);
  }

  /** The last descriptor of a chain of three. */
  setStatus(head: number, status: number = BlkStatus.OK): void {
    this.view.setUint8(this.target(this.next(this.next(head))), status);
  }

  /** Shows an element of the used ring, and that there are `index` of them. */
  use(at: number, id: number, length: number, index: number): void {
    this.view.setUint32(this.#used + 4 + 8 * (at % 256), id, true);
    this.view.setUint32(this.#used + 8 + 8 * (at % 256), length, true);
    this.view.setUint16(this.#used + 2, index, true);
    eventfd.signal(this.#call);
  }

  /** A message of its own. */
  say(bytes: Uint8Array): void {
    sendFds(this.channel, bytes, []);
  }
}
