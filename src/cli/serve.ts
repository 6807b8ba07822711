/** `blockplane serve`: images over NBD, or as vhost-user-blk devices, until a signal comes. */
import { EventEmitter, once } from 'node:events';
import type { Disk } from '../lib/disk.ts';
import { IOThread } from '../lib/iothread.ts';
import type { JobProgress } from '../lib/job-messages.ts';
import { type NbdService, serveNbd } from '../lib/nbd.ts';
import type { ObjectStore } from '../lib/objects/store.ts';
import { open } from '../lib/open.ts';
import { PrivateDirectory } from '../lib/private-directory.ts';
import type { TlsServerOptions } from '../lib/tls-options.ts';
import { serveVhostUser, type VhostUserService } from '../lib/vhost-user.ts';
import { activatedFds } from './activation.ts';
import { howTo, howToBoot } from './banner.ts';
import { Progress } from './progress.ts';
import { errorLine, PROGRAM, UsageError } from './report.ts';
import { type RawServeOptions, type ServeImage, type ServeOptions, serveOptions } from './serve-options.ts';

/** Milliseconds that requests in flight get to end: long for a disk, short for a client that does not read. */
const GRACE_MS = 1500;
const EXIT_USAGE = 2;
/** One Ctrl-C often comes twice: from the terminal, and passed on by npm or timeout. */
const SAME_SIGNAL_MS = 500;

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
  readonly #prefetched = new Map<Disk, JobProgress>();
  readonly #devices: VhostUserService[] = [];
  #directory: PrivateDirectory | undefined;
  #objects: ObjectStore | undefined;
  readonly #over = new EventEmitter();
  /** Settles when something says that it is over: a signal, or a dead thread. */
  readonly #ending: Promise<unknown>;
  #ended = false;
  /** Settles when nothing more will be started. */
  #starting: Promise<void> = Promise.resolve();

  constructor(options: ServeOptions) {
    this.#options = options;
    this.#ending = once(this.#over, 'end');
    this.#ending.catch(() => undefined);
  }

  #end(error?: Error): void {
    this.#ended = true;
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
    const progress = new Progress(this.#services, this.#options.progress, this.#prefetched);
    this.#starting = this.#start(early).then(() => this.#startPrefetch());
    this.#starting.catch(() => undefined);
    try {
      await Promise.race([this.#starting, this.#ending]);
      if (!this.#ended) progress.start();
      await this.#ending;
      // A start that a signal came into ends at its next step.
      await this.#starting;
      await this.#stop(progress);
      return 0;
    } catch (error) {
      progress.cancel();
      process.stderr.write(errorLine(error));
      await this.#abandon();
      return error instanceof UsageError ? EXIT_USAGE : 1;
    } finally {
      progress.cancel();
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
    const fds = this.#activated();
    await this.#addObjects();
    const started = await Promise.allSettled(threads.map((name) => this.#startThread(name, early)));
    for (const result of started) if (result.status === 'rejected') throw result.reason;
    if (this.#ended) return;
    const opened = await Promise.allSettled(images.map((image) => this.#open(image)));
    for (const result of opened) if (result.status === 'rejected') throw result.reason;
    if (images[0]?.vhostUser !== undefined) return this.#serveDevices();
    for (const [i, name] of threads.entries()) {
      if (this.#ended) return;
      await this.#serve(i, name, fds);
    }
    if (this.#ended) return;
    const uris = new Map(this.#services.flatMap((service) => service.uris.map((uri) => [uri, service] as const)));
    this.#announce(this.#inOrder([...uris.keys()]));
  }

  async #addObjects(): Promise<void> {
    const { objects } = this.#options;
    if (objects.length === 0) return;
    const [{ ObjectStore }, { addObject }] = await Promise.all([
      import('../lib/objects/store.ts'),
      import('../lib/objects/text.ts'),
    ]);
    this.#objects = new ObjectStore();
    for (const text of objects) await addObject(this.#objects, text);
  }

  /** The sockets that systemd has handed over: at least one for each thread, or none at all. */
  #activated(): number[] {
    const fds = activatedFds(process.env, process.pid);
    if (fds.length === 0) return fds;
    const { listen, threads } = this.#options;
    if (listen.kind !== 'private') {
      throw new UsageError('--socket and --listen: not together with sockets from systemd');
    }
    if (fds.length >= threads.length) return fds;
    const missing = `systemd gave ${fds.length} socket${fds.length === 1 ? '' : 's'}`;
    throw new UsageError(`${missing} for ${threads.length} IOThreads; every one needs its own`);
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

  async #open(image: ServeImage): Promise<void> {
    const { readOnly, forceShare, cache, discard, detectZeroes, format, references, qcow2, http } = this.#options;
    const thread = this.#threads.get(image.thread)!;
    const path = image.path ?? (await this.#temporaryImage(thread));
    const target = this.#options.imageOpts ? (await import('../lib/image-opts.ts')).imageOpts(path) : path;
    const disk = await open(target, {
      ...{ format, readOnly, forceShare, cache, discard, detectZeroes, qcow2, http, ...references },
      overlay: image.overlay,
      objects: this.#objects,
      iothread: thread,
    });
    this.#disks.set(image, disk);
  }

  async #temporaryImage(thread: IOThread): Promise<string> {
    const path = this.#temporaryPath;
    const { create } = await import('../lib/images.ts');
    await create(path, { size: this.#options.size, iothread: thread });
    return path;
  }

  get #temporaryPath(): string {
    return `${this.#privateDirectory.path}/disk.qcow2`;
  }

  /** One service a thread; the first takes the address as given, the others its neighbours. */
  async #serve(index: number, thread: string, fds: readonly number[]): Promise<void> {
    const { listen, images, bitmaps, maxConnections, handshakeSeconds, byteBudget } = this.#options;
    const mine = images.filter((image) => image.thread === thread);
    const exports = mine.map((image) => ({
      disk: this.#disks.get(image)!,
      exportName: image.exportName,
      description: image.description,
      bitmaps,
    }));
    const iothreads = await this.#clientThreads(thread);
    const limits = { maxConnections, handshakeSeconds, byteBudget, iothreads, tls: await this.#tls() };
    if (fds.length > 0) {
      // Dealt out in turn; a thread with several serves the same exports on each.
      const fd = fds.filter((_, i) => i % this.#options.threads.length === index);
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

  async #tls(): Promise<TlsServerOptions | undefined> {
    const { tls } = this.#options;
    if (!tls || !('creds' in tls)) return tls;
    const { creds, ...how } = tls;
    if (!this.#objects) throw new UsageError(`--tls-creds: there is no --object with id '${creds}'`);
    const { credentialsOf } = await import('../lib/objects/tls.ts');
    return { ...credentialsOf(this.#objects, creds, 'server'), ...how };
  }

  /** The thread itself, and those that share its clients with it. */
  async #clientThreads(own: string): Promise<IOThread[]> {
    const names = Array.from({ length: this.#options.clientThreads - 1 }, (_, i) => `${own}.${i + 1}`);
    const missing = names.filter((name) => !this.#threads.has(name));
    await Promise.all(missing.map((name) => this.#startThread(name, undefined)));
    return [own, ...names].map((name) => this.#threads.get(name)!);
  }

  #startPrefetch(): void {
    if (this.#ended || !this.#options.prefetch) return;
    for (const disk of this.#disks.values()) void this.#prefetch(disk);
  }

  /** Goes on until it is done or the disk is closed; what was not copied then is the next run's. */
  async #prefetch(disk: Disk): Promise<void> {
    try {
      await disk.stream({ onProgress: (progress) => this.#prefetched.set(disk, progress) });
    } catch (error) {
      this.#prefetched.delete(disk);
      if (!this.#ended) process.stderr.write(errorLine(error));
    }
  }

  /** A device for each image, in order. */
  async #serveDevices(): Promise<void> {
    for (const image of this.#options.images) {
      if (this.#ended) return;
      const { vhostUser: socket, exportName: serial } = image;
      const threads = await this.#clientThreads(image.thread);
      const iothreadVqMapping = threads.map((iothread) => ({ iothread }));
      const { queues } = this.#options;
      const device = await serveVhostUser(this.#disks.get(image)!, { socket, serial, queues, iothreadVqMapping });
      device.on('disconnect', (why) => {
        if (why !== undefined) process.stderr.write(errorLine(`${device.socket}: ${why}`));
      });
      this.#devices.push(device);
    }
    process.stdout.write(`${this.#devices.map((device) => device.socket).join('\n')}\n`);
    process.stdout.write(howToBoot(this.#devices[0]!.socket, [...this.#threads.values()], this.#temporary));
  }

  /** Where the image is that will be removed at the end, if there is one. */
  get #temporary(): string | undefined {
    return this.#options.images[0]?.path === undefined ? this.#temporaryPath : undefined;
  }

  #announce(uris: readonly string[]): void {
    process.stdout.write(`${uris.join('\n')}\n`);
    const text = howTo(uris, [...this.#threads.values()], this.#temporary);
    // A program that reads JSON lines gets nothing else after the URIs.
    (this.#options.progress === 'json' ? process.stderr : process.stdout).write(text);
  }

  /** Clients first, then everything to stable storage, then the threads. A failure is told after all is done. */
  async #stop(progress: Progress): Promise<void> {
    await Promise.all([
      ...this.#services.map((service) => service.stop(GRACE_MS)),
      ...this.#devices.map((device) => device.stop()),
    ]);
    await progress.stop();
    const closed = await Promise.allSettled([...this.#disks.values()].map((disk) => disk.close()));
    await Promise.all([...this.#threads.values()].map((thread) => thread.stop()));
    for (const result of closed) if (result.status === 'rejected') throw result.reason;
  }

  /** After a failure: as much of a good end as there can be. */
  async #abandon(): Promise<void> {
    await this.#starting.catch(() => undefined);
    await Promise.allSettled(this.#services.map((service) => service.stop(GRACE_MS)));
    await Promise.allSettled(this.#devices.map((device) => device.stop()));
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
