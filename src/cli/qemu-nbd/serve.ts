/** An image as an NBD export, until the last client has left or a signal comes. */
import { Gate } from '../../aio/op.ts';
import type { Disk } from '../../lib/disk.ts';
import { IOThread } from '../../lib/iothread.ts';
import { NBD_RANGES, type NbdService, type ServeNbdOptions, serveNbd } from '../../lib/nbd.ts';
import type { ObjectStore } from '../../lib/objects/store.ts';
import { open } from '../../lib/open.ts';
import { PidFile } from '../../lib/pid-file.ts';
import type { TlsServerOptions } from '../../lib/tls-options.ts';
import { activatedFds } from '../activation.ts';
import { fork, forkDone, forkedFds } from './fork.ts';
import { findImage, howOf } from './image.ts';
import { Failure, type NbdOptions, type WantedSnapshot } from './options.ts';
import type { Terminal } from './program.ts';
import { listenFailure, openFailure } from './words.ts';

/** Milliseconds that requests in flight get when a signal comes. */
const GRACE_MS = 1500;
const DEFAULT_PORT = 10809;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** What comes with the options. */
interface Beside {
  readonly objects: ObjectStore | undefined;
  readonly tls: TlsServerOptions | undefined;
  readonly terminal: Terminal;
}

/** Answers the exit code. Throws what is to be printed. */
export async function serve(name: string, options: NbdOptions, beside: Beside): Promise<number> {
  const forked = forkedFds(process.env);
  const fds = forked ?? activatedFds(process.env, process.pid);
  checkPlace(options, fds);
  if (options.selinuxLabel !== undefined) {
    throw new Failure(`Cannot set SELinux socket create context to ${options.selinuxLabel}: Operation not supported`);
  }
  checkTexts(options);
  if (options.fork && forked === undefined) return await fork(fds);
  await using server = new Server(options, beside);
  await server.open(name);
  await server.listen(fds);
  if (forked !== undefined) forkDone();
  return await server.ended();
}

/** Sockets that systemd has handed over are where it listens, whatever else it could. */
function checkPlace({ bind, port, socket }: NbdOptions, fds: readonly number[]): void {
  if (fds.length === 0) return;
  const when = "can't be set when using socket activation";
  if (bind !== undefined) throw new Failure(`The interface ${when}`);
  if (port !== undefined) throw new Failure(`TCP port number ${when}`);
  if (socket !== undefined) throw new Failure(`Unix socket ${when}`);
}

function checkTexts({ exportName, description, exportName: name }: NbdOptions): void {
  const long = (text: string | undefined): boolean => Buffer.byteLength(text ?? '') > 4096;
  if (long(name)) throw new Failure(`export name '${exportName}' too long`);
  if (long(description)) throw new Failure(`export description '${description}' too long`);
}

class Server implements AsyncDisposable {
  readonly #options: NbdOptions;
  readonly #beside: Beside;
  /** Starts while the image is looked for. */
  readonly #thread: Promise<IOThread>;
  /** Opens at the end: with the error that it ends with, if there is one. */
  readonly #end = new Gate<Error | undefined>();
  readonly #onSignal = (): void => this.#end.open(undefined);
  #disk: Disk | undefined;
  #service: NbdService | undefined;
  #pidFile: PidFile | undefined;

  constructor(options: NbdOptions, beside: Beside) {
    this.#options = options;
    this.#beside = beside;
    const { aio: mode } = options;
    const aio = mode === undefined ? undefined : mode === 'threads' ? 'pool' : 'ring';
    this.#thread = IOThread.start({ name: 'io0', aio });
    this.#thread.then(
      (thread) => thread.on('crash', (error) => this.#end.open(error)),
      () => undefined,
    );
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
  }

  async open(name: string): Promise<void> {
    const { aio, cache, temporary, snapshot } = this.#options;
    try {
      if (aio === 'native' && cache !== 'none' && cache !== 'directsync') {
        throw new Error('aio=native was specified, but it requires cache.direct=on, which was not specified.');
      }
      const { tree, guessedRaw } = await findImage(name, this.#options);
      if (guessedRaw && !this.#options.readOnly && !temporary) this.#beside.terminal.err(rawWarning(name));
      if (snapshot && tree.driver !== 'qcow2') throw new Failure(withoutSnapshots(tree.driver));
      const iothread = await this.#thread;
      const how = { ...howOf(this.#options), objects: this.#beside.objects, iothread, references: 'all' } as const;
      // The temporary image has none.
      const which = snapshot && (temporary ? undefined : await this.#snapshotId(snapshot, () => open(tree, how)));
      if (snapshot && which === undefined) throw new Failure("Failed to load snapshot: Can't find snapshot");
      const shown = which === undefined ? tree : { ...tree, snapshot: which };
      this.#disk = await open(shown as typeof tree, { ...how, temporary: temporary && !this.#options.readOnly });
    } catch (error) {
      throw error instanceof Failure ? error : new Failure(openFailure(name, error));
    }
  }

  /** What the driver finds it by. */
  async #snapshotId({ id, name, either }: WantedSnapshot, opened: () => Promise<Disk>): Promise<string | undefined> {
    if (either !== undefined) return either;
    await using disk = await opened();
    const matches = (await disk.snapshots.list()).filter(
      (one) => (id === undefined || one.id === id) && (name === undefined || one.name === name),
    );
    return matches[0]?.id;
  }

  async listen(fds: readonly number[]): Promise<void> {
    const { exportName = '', description = '', bitmaps, allocationDepth, shared, readOnly, pidFile } = this.#options;
    const place = this.#place(fds);
    try {
      this.#service = await serveNbd(
        [
          // Several connections are one client's right where several clients are let in.
          ...[
            { disk: this.#disk!, exportName, description, bitmaps, allocationDepth, multiConn: shared !== 1, readOnly },
          ],
        ],
        {
          ...place,
          // As many as fit into the server, where that is less.
          maxConnections: Math.min(shared, NBD_RANGES.maxConnections.most),
          handshakeSeconds: this.#options.handshakeSeconds,
          iothreads: [await this.#thread],
          tls: this.#beside.tls,
        },
      );
    } catch (error) {
      throw new Failure(listenFailure(place, error));
    }
    this.#service.on('disconnect', () => this.#onDisconnect());
    // One that was as quick.
    this.#onDisconnect();
    if (pidFile === undefined) return;
    try {
      this.#pidFile = new PidFile(pidFile);
      this.#pidFile.write(process.pid);
    } catch (error) {
      throw new Failure((error as Error).message.replace('cannot create PID file: ', ''));
    }
  }

  #place(fds: readonly number[]): Pick<ServeNbdOptions, 'fd' | 'socket' | 'socketMode' | 'host' | 'port'> {
    const { socket, bind = '0.0.0.0', port = String(DEFAULT_PORT) } = this.#options;
    if (fds.length > 0) return { fd: fds };
    if (socket !== undefined) return { socket, socketMode: 0o777 & ~process.umask() };
    if (!/^\d+$/.test(port)) {
      throw new Failure(`address resolution failed for ${bind}:${port}: Servname not supported for ai_socktype`);
    }
    return { host: bind, port: Number(port) };
  }

  /** One that only looked around, and took no export, does not end it. */
  #onDisconnect(): void {
    const { clients, handshakes } = this.#service!;
    if (clients === 0 && handshakes > 0 && !this.#options.persistent) this.#end.open(undefined);
  }

  async ended(): Promise<number> {
    const error = await this.#end.promise;
    if (error) throw error;
    return 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const signal of SIGNALS) process.off(signal, this.#onSignal);
    try {
      await this.#service?.stop(GRACE_MS);
      await this.#disk?.close();
    } finally {
      this.#pidFile?.remove();
      await this.#thread.then((thread) => thread.stop()).catch(() => undefined);
    }
  }
}

function rawWarning(name: string): string {
  return `WARNING: Image format was not specified for '${name}' and probing guessed raw.
         A write to its beginning that would make it look like another format is refused. Give -f raw to allow it.
`;
}

function withoutSnapshots(driver: string): string {
  const why = 'does not support temporarily loading internal snapshots';
  return `Failed to load snapshot: Block format '${driver}' used by device '' ${why}`;
}
