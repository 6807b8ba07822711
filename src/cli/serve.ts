/** `blockplane serve`: images over NBD until a signal comes. */
import { EventEmitter, once } from 'node:events';
import { closeSync, openSync, truncateSync } from 'node:fs';
import type { Disk } from '../lib/disk.ts';
import { IOThread } from '../lib/iothread.ts';
import { type NbdService, serveNbd } from '../lib/nbd.ts';
import { open } from '../lib/open.ts';
import { PrivateDirectory } from '../lib/private-directory.ts';
import { activatedFds } from './activation.ts';
import { howTo } from './banner.ts';
import { Progress } from './progress.ts';
import { errorLine, PROGRAM, UsageError } from './report.ts';
import { type RawServeOptions, type ServeImage, type ServeOptions, serveOptions } from './serve-options.ts';

/** One Ctrl-C often comes twice: from the terminal, and passed on by npm or timeout. */
const SAME_SIGNAL_MS = 1000;

/** A thread that was started before the options were read, to save its start-up time. */
export interface EarlyThread {
  readonly name: string;
  readonly aio: string | undefined;
  readonly thread: Promise<IOThread>;
}

class ServeCommand {
  readonly #options: ServeOptions;
  readonly #threads = new Map<string, IOThread>();
  readonly #disks = new Map<ServeImage, Disk>();
  readonly #services: NbdService[] = [];
  #directory: PrivateDirectory | undefined;
  readonly #over = new EventEmitter();
  /** Settles when something says that it is over: a signal, or a dead thread. */
  readonly #ending: Promise<unknown>;

  constructor(options: ServeOptions) {
    this.#options = options;
    this.#ending = once(this.#over, 'end');
    this.#ending.catch(() => undefined);
  }

  #end(error?: Error): void {
    if (!error) this.#over.emit('end');
    else if (this.#over.listenerCount('error') > 0) this.#over.emit('error', error);
  }

  /** Private to this run, and gone with the process however it ends. */
  get #privateDirectory(): PrivateDirectory {
    if (!this.#directory) {
      const directory = new PrivateDirectory();
      process.once('exit', () => directory.remove());
      this.#directory = directory;
    }
    return this.#directory;
  }

  async run(early: EarlyThread | undefined): Promise<number> {
    const signals = this.#catchSignals();
    try {
      await Promise.race([this.#start(early), this.#ending]);
      const progress = new Progress(this.#services, this.#options.progress);
      progress.start();
      await this.#ending;
      await this.#stop(progress);
      return 0;
    } catch (error) {
      process.stderr.write(errorLine(error));
      await this.#abandon();
      return 1;
    } finally {
      signals();
      this.#directory?.remove();
    }
  }

  #catchSignals(): () => void {
    let first = 0;
    const onSignal = (): void => {
      const now = performance.now();
      if (first === 0) {
        first = now;
        this.#end();
      } else if (now - first > SAME_SIGNAL_MS) {
        process.stderr.write(`${PROGRAM}: Stopped at once: requests in flight were not waited for\n`);
        process.exit(1);
      }
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, onSignal);
    return () => {
      for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(signal, onSignal);
    };
  }

  async #start(early: EarlyThread | undefined): Promise<void> {
    const { threads, images } = this.#options;
    await Promise.all(threads.map((name) => this.#startThread(name, early)));
    const opened = await Promise.allSettled(images.map((image) => this.#open(image)));
    for (const result of opened) if (result.status === 'rejected') throw result.reason;
    const fds = activatedFds(process.env, process.pid);
    if (fds.length > 0 && this.#options.listen.kind !== 'private') {
      throw new UsageError('--socket and --listen: not together with sockets from systemd');
    }
    for (const [i, name] of threads.entries()) await this.#serve(i, name, fds);
    const uris = new Map(this.#services.flatMap((service) => service.uris.map((uri) => [uri, service] as const)));
    this.#announce(this.#inOrder([...uris.keys()]));
  }

  /** URIs in the order of the images. */
  #inOrder(uris: readonly string[]): string[] {
    const { images, threads } = this.#options;
    const byThread = threads.flatMap((name) => images.filter((image) => image.thread === name));
    return images.map((image) => uris[byThread.indexOf(image)]!);
  }

  async #startThread(name: string, early: EarlyThread | undefined): Promise<void> {
    const { aio, pollMaxNs } = this.#options;
    const usable = early && early.name === name && early.aio === aio && pollMaxNs === undefined;
    const thread = await (usable ? early.thread : IOThread.start({ name, aio, pollMaxNs }));
    thread.on('crash', (error) => this.#end(error));
    this.#threads.set(name, thread);
  }

  #imagePath(image: ServeImage): string {
    if (image.path !== undefined) return image.path;
    const path = `${this.#privateDirectory.path}/disk.img`;
    closeSync(openSync(path, 'wx', 0o600));
    truncateSync(path, this.#options.size);
    return path;
  }

  async #open(image: ServeImage): Promise<void> {
    const { readOnly, forceShare, cache, discard, detectZeroes } = this.#options;
    // What we have made ourselves is raw, and no better than raw.
    const format = image.path === undefined ? 'raw' : this.#options.format;
    const disk = await open(this.#imagePath(image), {
      ...{ format, readOnly, forceShare, cache, discard, detectZeroes },
      iothread: this.#threads.get(image.thread),
    });
    this.#disks.set(image, disk);
  }

  /** One service a thread; the first takes the address as given, the others its neighbours. */
  async #serve(index: number, thread: string, fds: readonly number[]): Promise<void> {
    const { listen, images, maxConnections, handshakeSeconds, byteBudget } = this.#options;
    const mine = images.filter((image) => image.thread === thread);
    const exports = mine.map((image) => ({
      disk: this.#disks.get(image)!,
      exportName: image.exportName,
      description: image.description,
    }));
    const limits = { maxConnections, handshakeSeconds, byteBudget };
    if (fds.length > 0) {
      const fd = fds[index];
      if (fd === undefined) throw new UsageError(`systemd gave ${fds.length} sockets; every IOThread needs one`);
      this.#services.push(await serveNbd(exports, { ...limits, fd }));
    } else if (listen.kind === 'inet') {
      const port = listen.port === 0 ? 0 : listen.port + index;
      this.#services.push(await serveNbd(exports, { ...limits, host: listen.host, port }));
    } else {
      const path = listen.kind === 'unix' ? listen.path : `${this.#privateDirectory.path}/nbd.sock`;
      const socket = index === 0 ? path : `${path}.${thread}`;
      this.#services.push(await serveNbd(exports, { ...limits, socket }));
    }
  }

  #announce(uris: readonly string[]): void {
    process.stdout.write(`${uris.join('\n')}\n`);
    const temporary = this.#options.images[0]?.path === undefined ? `${this.#directory?.path}/disk.img` : undefined;
    const text = howTo(uris, [...this.#threads.values()], temporary);
    // A program that reads JSON lines gets nothing else after the URIs.
    (this.#options.progress === 'json' ? process.stderr : process.stdout).write(text);
  }

  /** Clients first, then everything to stable storage, then the threads. A failure is told after all is done. */
  async #stop(progress: Progress): Promise<void> {
    await Promise.all(this.#services.map((service) => service.stop()));
    await progress.stop();
    const closed = await Promise.allSettled([...this.#disks.values()].map((disk) => disk.close()));
    await Promise.all([...this.#threads.values()].map((thread) => thread.stop()));
    for (const result of closed) if (result.status === 'rejected') throw result.reason;
  }

  /** After a failure: as much of a good end as there can be. */
  async #abandon(): Promise<void> {
    await Promise.allSettled(this.#services.map((service) => service.stop()));
    await Promise.allSettled([...this.#disks.values()].map((disk) => disk.close()));
    await Promise.allSettled([...this.#threads.values()].map((thread) => thread.stop()));
  }
}

export async function serve(
  paths: readonly string[],
  raw: RawServeOptions,
  early: EarlyThread | undefined,
): Promise<number> {
  return new ServeCommand(serveOptions(paths, raw)).run(early);
}
