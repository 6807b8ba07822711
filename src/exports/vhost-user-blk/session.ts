/**
 * One front-end from its coming to its going: its messages, in order, each with its answer. Whatever a front-end does
 * wrong is an answer that says so where it has asked for answers, and otherwise the end of the session; it never takes
 * more than its own device with it. [Vhost-user Protocol: Front-end message types]
 */
import type { AioSocket } from '../../aio/backend.ts';
import { BlockError } from '../../base/errors.ts';
import { close } from '../../native/file.ts';
import { sendFds } from '../../native/socket.ts';
import { BackRequest, FrontRequest, HeaderFlag, ProtocolFeature } from '../../proto/vhost-user/constants.ts';
import { decodeBits, encodeMessage, encodeU64 } from '../../proto/vhost-user/message.ts';
import { PROTOCOL_FEATURES } from './config.ts';
import type { BlkDevice } from './device.ts';
import { type Answer, bad, found, type QueueHost } from './device-messages.ts';
import { type FrontMessage, MessageStream } from './message-stream.ts';

/** Names of requests, for messages. */
const NAMES = new Map<number, string>(Object.entries(FrontRequest).map(([name, value]) => [value, name]));

export class Session {
  readonly #stream: MessageStream;
  readonly #host: QueueHost;
  #protocol = 0;
  /** Where we send messages of our own; -1 for nowhere. */
  #channel = -1;

  constructor(device: BlkDevice, socket: AioSocket, host: QueueHost) {
    this.#stream = new MessageStream(device.context, socket);
    this.#host = host;
  }

  /** Serves the front-end until it leaves, or does what cannot be answered: then the text says what. The device is as
   *  new afterwards. */
  async run(): Promise<string | undefined> {
    try {
      for (;;) {
        const message = await this.#stream.receive();
        if (!message) return undefined;
        try {
          await this.#handle(message);
        } finally {
          message.drop();
        }
      }
    } catch (error) {
      if (error instanceof BlockError) return error.message;
      throw error;
    } finally {
      await this.#host.end();
      if (this.#channel >= 0) close(this.#channel);
      this.#channel = -1;
    }
  }

  /** Tells the front-end to read the configuration space again. */
  configChanged(): void {
    // One that does not read its channel learns of it when it reads the space next.
    if (this.#channel >= 0) sendFds(this.#channel, encodeMessage(BackRequest.CONFIG_CHANGE), []);
  }

  async #handle(message: FrontMessage): Promise<void> {
    const { request } = message;
    const wanted = message.wantsAnswer && (this.#protocol & ProtocolFeature.REPLY_ACK) !== 0;
    let answer: Answer | undefined;
    try {
      answer = await this.#answer(message);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const what = `Could not do what message ${NAMES.get(request) ?? request} says: ${error.message}`;
      if (!wanted) throw new BlockError(error.errno, what, { cause: error });
      answer = { payload: encodeU64(1) };
    }
    if (!answer && wanted) answer = { payload: encodeU64(0) };
    if (!answer) return;
    try {
      const fds = answer.fd === undefined ? [] : [answer.fd];
      await this.#stream.send(encodeMessage(request, answer.payload, HeaderFlag.REPLY), fds);
    } finally {
      if (answer.fd !== undefined) close(answer.fd);
    }
  }

  /** What is the connection's is done here. */
  #answer(message: FrontMessage): Answer | undefined | Promise<Answer | undefined> {
    const R = FrontRequest;
    if (message.request === R.GET_PROTOCOL_FEATURES) return { payload: encodeU64(PROTOCOL_FEATURES) };
    if (message.request === R.SET_PROTOCOL_FEATURES) return this.#setProtocol(message);
    if (message.request === R.SET_BACKEND_REQ_FD) return this.#setChannel(message);
    return this.#host.handle(message);
  }

  #setProtocol({ payload }: FrontMessage): undefined {
    const { low, high } = found(decodeBits(payload));
    if ((low & ~PROTOCOL_FEATURES) !== 0 || high !== 0) throw bad('it takes protocol features that are not offered');
    this.#protocol = low;
  }

  #setChannel(message: FrontMessage): undefined {
    const fd = message.take();
    if (this.#channel >= 0) close(this.#channel);
    this.#channel = fd;
  }
}
