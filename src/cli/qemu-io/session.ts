/** One run of the program: the image that is open, and the requests that nobody waits for yet. Home thread. */
import type { AioContext } from '../../aio/context.ts';
import { BlockError } from '../../base/errors.ts';
import { ImageIo, type IoOpenHow } from '../../img/io.ts';
import type { ImageSpec } from '../../img/open.ts';
import type { ObjectStore } from '../../lib/objects/store.ts';
import { openReason } from '../qemu-img/messages.ts';
import { warnProbedRaw } from '../qemu-img/targets.ts';
import type { Terminal } from '../qemu-img/verb.ts';
import { Failed, type Fatal } from './command.ts';

/** Requests that nobody waits for; the next one waits until they have ended. */
const FLYING_MAX = 1024;

interface Opened {
  readonly image: ImageIo;
  readonly spec: ImageSpec;
  readonly how: IoOpenHow;
}

export class Session {
  readonly context: AioContext;
  readonly terminal: Terminal;
  /** Of the program, for whatever is opened. */
  readonly objects: ObjectStore | undefined;
  /** No command comes any more. */
  ended = false;
  /** Of a request that nobody waited for. */
  fatal: Fatal | undefined;
  #opened: Opened | undefined;
  readonly #flying = new Set<Promise<void>>();

  constructor(context: AioContext, terminal: Terminal, objects?: ObjectStore) {
    this.context = context;
    this.terminal = terminal;
    this.objects = objects;
  }

  get isOpen(): boolean {
    return this.#opened !== undefined;
  }

  /** Of a command that needs one: there is one. */
  get image(): ImageIo {
    return this.#opened!.image;
  }

  /** As the image was opened. */
  get how(): IoOpenHow {
    return this.#opened!.how;
  }

  async open(spec: ImageSpec, given: IoOpenHow): Promise<void> {
    const how = { ...given, objects: this.objects };
    if (this.#opened) throw new Failed("qemu-io: file open already, try 'help close'", 'err');
    const image = await openOne(this.context, spec, { ...how, onProbedRaw: warnProbedRaw(this.terminal) });
    this.#opened = { image, spec, how };
  }

  /** Opens the image anew, in another way; when that fails it is open as it was. */
  async reopen(how: IoOpenHow): Promise<void> {
    const { image, spec: given, how: before } = this.#opened!;
    // Whatever the content has become since it was looked at.
    const spec = given.imageOpts ? given : { ...given, format: image.format };
    await this.close();
    try {
      this.#opened = { image: await openOne(this.context, spec, how), spec, how };
    } catch (error) {
      this.#opened = { image: await openOne(this.context, spec, before), spec, how: before };
      throw error;
    }
  }

  /** Once all requests have ended. */
  async close(): Promise<void> {
    try {
      await this.settle();
    } finally {
      const opened = this.#opened;
      this.#opened = undefined;
      await opened?.image.close();
    }
  }

  /** Lets a request go on by itself; it must not reject. */
  async detach(request: Promise<void>): Promise<void> {
    if (this.#flying.size >= FLYING_MAX) await this.settle();
    const tracked = request.then(() => {
      this.#flying.delete(tracked);
    });
    this.#flying.add(tracked);
  }

  /** What `event` resolves to; undefined where every request has ended, or stopped, before it. */
  async whileFlying<T>(event: Promise<T>): Promise<T | undefined> {
    let result: T | undefined;
    let over = false;
    const watched = event.then((value) => {
      result = value;
      over = true;
    });
    while (!over && this.#flying.size > 0) await Promise.race([watched, ...this.#flying]);
    return result;
  }

  /** Waits for all that goes on by itself; what was stopped goes on. */
  async settle(): Promise<void> {
    this.#opened?.image.breakpoints?.resumeAll();
    for (const request of [...this.#flying]) await request;
    if (this.fatal) throw this.fatal;
  }
}

async function openOne(context: AioContext, spec: ImageSpec, how: IoOpenHow): Promise<ImageIo> {
  try {
    return await ImageIo.open(context, spec, how);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const what = spec.imageOpts ? "can't open" : `can't open device ${spec.name}`;
    const why = error.where.path === undefined ? error.message : openReason(error);
    throw new Failed(`qemu-io: ${what}: ${why}`, 'err');
  }
}
