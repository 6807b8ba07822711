/**
 * Queues of one device in several threads. One of them has the front-end's socket; each of the others, the members, has
 * a device of its own with the same memory, in which only its queues ever start. The messages that are about a queue go
 * to who has it, those that are about the device to all, and are answered when all have done what they say.
 */
import { once } from 'node:events';
import type { MessagePort } from 'node:worker_threads';
import { Gate } from '../../aio/op.ts';
import { BlockError, Errno, type PlainError } from '../../base/errors.ts';
import { duplicate } from '../../native/file.ts';
import { FrontRequest, HeaderFlag, NO_FD } from '../../proto/vhost-user/constants.ts';
import { type Answer, bad, type QueueHost } from './device-messages.ts';
import { FrontMessage } from './message-stream.ts';

/** From the thread with the socket to a member. No `request`: the front-end has gone. */
interface ToMember {
  readonly id: number;
  readonly request?: number;
  readonly payload?: Uint8Array;
  /** The member's from here on. */
  readonly fds?: readonly number[];
}

type FromMember =
  | { readonly id: number; readonly answer: Answer | undefined }
  | { readonly id: number; readonly error: PlainError }
  | { readonly broken: number; readonly why: string };

const R = FrontRequest;
/** Their payload begins with the number of a queue. */
const OF_A_QUEUE: ReadonlySet<number> = new Set([
  ...[R.SET_VRING_NUM, R.SET_VRING_ADDR, R.SET_VRING_BASE, R.GET_VRING_BASE],
  ...[R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_VRING_ENABLE],
]);
/** What changes the device as a whole. */
const OF_THE_DEVICE: ReadonlySet<number> = new Set([
  ...[R.SET_FEATURES, R.RESET_OWNER, R.RESET_DEVICE, R.SET_MEM_TABLE, R.ADD_MEM_REG, R.REM_MEM_REG],
  ...[R.SET_LOG_BASE, R.SET_CONFIG, R.SET_INFLIGHT_FD],
]);

/** A member as the thread with the socket sees it. */
export class MemberLink implements QueueHost {
  /** Told when a queue of its has met what cannot be. */
  onBroken: (queue: number, why: string) => void = () => undefined;
  /** Told when its thread is gone. */
  onGone: () => void = () => undefined;
  readonly #port: MessagePort;
  readonly #asked = new Map<number, Gate<Answer | undefined>>();
  #ids = 0;
  #gone = false;

  constructor(port: MessagePort) {
    this.#port = port;
    port.on('message', (message: FromMember) => this.#receive(message));
    port.on('close', () => this.#closed());
    port.unref();
  }

  #receive(message: FromMember): void {
    if ('broken' in message) {
      this.onBroken(message.broken, message.why);
      return;
    }
    const gate = this.#asked.get(message.id);
    this.#asked.delete(message.id);
    if ('error' in message) gate?.fail(BlockError.fromPlain(message.error));
    else gate?.open(message.answer);
  }

  #closed(): void {
    if (this.#gone) return;
    this.#gone = true;
    for (const gate of this.#asked.values()) gate.fail(gone());
    this.#asked.clear();
    this.onGone();
  }

  #ask(message: Omit<ToMember, 'id'>): Promise<Answer | undefined> {
    if (this.#gone) throw gone();
    const id = ++this.#ids;
    const gate = new Gate<Answer | undefined>();
    this.#asked.set(id, gate);
    this.#port.postMessage({ ...message, id } satisfies ToMember);
    return gate.promise;
  }

  async handle({ request, payload, fds }: FrontMessage): Promise<Answer | undefined> {
    if (this.#gone) throw gone();
    const copies = fds.map((fd) => duplicate(fd));
    if (copies.some((fd) => fd < 0)) throw bad('its descriptors cannot be duplicated', Errno.EMFILE);
    return this.#ask({ request, payload, fds: copies });
  }

  async end(): Promise<void> {
    if (this.#gone) return;
    try {
      await this.#ask({});
    } catch (error) {
      // It has ended all by itself.
      if (!this.#gone) throw error;
    }
  }

  /** No front-end is there, and none will be. */
  close(): void {
    this.#gone = true;
    this.#port.close();
  }
}

function gone(): BlockError {
  return bad('the thread of a queue has ended', Errno.ESHUTDOWN);
}

/** The other end of a MemberLink: `host` does what it is told. Resolves when the link has ended, and with it what the
 *  front-end had here. */
export async function serveMember(port: MessagePort, host: QueueHost): Promise<void> {
  // One after the other, as they come.
  let last: Promise<unknown> = Promise.resolve();
  port.on('message', (message: ToMember) => {
    last = last.then(() => serveOne(port, host, message));
  });
  port.unref();
  await once(port, 'close');
  await last;
  await host.end();
}

async function serveOne(port: MessagePort, host: QueueHost, message: ToMember): Promise<void> {
  const { id, request, payload = new Uint8Array(0), fds = [] } = message;
  const received = new FrontMessage(request ?? 0, HeaderFlag.VERSION, payload, fds);
  try {
    const answer = request === undefined ? await host.end() : await host.handle(received);
    port.postMessage({ id, answer: answer ?? undefined } satisfies FromMember);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    port.postMessage({ id, error: error.toPlain() } satisfies FromMember);
  } finally {
    received.drop();
  }
}

/** Tells the thread with the socket that a queue is of no more use. */
export function reportBroken(port: MessagePort, broken: number, why: string): void {
  port.postMessage({ broken, why } satisfies FromMember);
}

/** A device whose queues are in several threads. */
export class QueueRouter implements QueueHost {
  readonly #own: QueueHost;
  readonly #members: readonly MemberLink[];
  readonly #placement: readonly number[];

  /** `placement`: by queue, 0 for the own host, i for member i - 1. */
  constructor(own: QueueHost, members: readonly MemberLink[], placement: readonly number[]) {
    this.#own = own;
    this.#members = members;
    this.#placement = placement;
  }

  async handle(message: FrontMessage): Promise<Answer | undefined> {
    const { request, payload } = message;
    if (OF_A_QUEUE.has(request)) return this.#ownerOf(payload).handle(message);
    if (!OF_THE_DEVICE.has(request)) return this.#own.handle(message);
    // The members first: the own host may take what came along.
    const asked = [...this.#members, this.#own].map((host) => host.handle(message));
    const results = await Promise.allSettled(asked);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return (results.at(-1) as PromiseFulfilledResult<Answer | undefined>).value;
  }

  /** What there is no queue for is refused by the own host. */
  #ownerOf(payload: Uint8Array): QueueHost {
    if (payload.length < 4) return this.#own;
    const index = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true) % NO_FD;
    const place = this.#placement[index] ?? 0;
    return place === 0 ? this.#own : this.#members[place - 1]!;
  }

  async end(): Promise<void> {
    await Promise.all([this.#own.end(), ...this.#members.map((member) => member.end())]);
  }
}
