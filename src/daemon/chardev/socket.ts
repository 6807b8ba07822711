/** Socket devices: one client at a time, or one server that is connected to. */

import { unlinkSync } from 'node:fs';
import { createConnection, createServer, type Server, Socket } from 'node:net';
import { Gate } from '../../aio/op.ts';
import { errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Chardev, CharFrontend, SocketAddress } from './chardev.ts';
import { StreamLink } from './stream.ts';

export interface SocketSettings {
  readonly addr: SocketAddress;
  readonly server: boolean;
  /** Of a server: the device is there once the first client is. */
  readonly wait: boolean;
  readonly nodelay: boolean;
  /** Seconds after which a client tries again; 0 for never. */
  readonly reconnect: number;
}

/** Clients that wait for their turn. */
const WAITING_MAX = 8;

export class SocketChardev implements Chardev {
  readonly #settings: SocketSettings;
  #server: Server | undefined;
  #frontend: CharFrontend | undefined;
  #socket: Socket | undefined;
  /** Clients that come after this one. */
  readonly #waiting: Socket[] = [];
  #link: StreamLink | undefined;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  #where: string;
  readonly #first = new Gate();

  private constructor(settings: SocketSettings) {
    this.#settings = settings;
    this.#where = addressText(settings.addr);
  }

  /** Listens, or connects; rejects where it cannot. */
  static async open(settings: SocketSettings): Promise<SocketChardev> {
    const device = new SocketChardev(settings);
    if (settings.server) await device.#listen();
    else if (settings.reconnect > 0) device.#retry();
    else await device.#connect();
    return device;
  }

  /** Resolves with the first client. */
  get connected(): Promise<void> {
    return this.#first.promise;
  }

  get filename(): string {
    const role = this.#settings.server ? ',server=on' : '';
    return `${this.#socket ? '' : 'disconnected:'}${this.#where}${role}`;
  }

  get frontendOpen(): boolean {
    return this.#link !== undefined;
  }

  attach(frontend: CharFrontend): void {
    this.#frontend = frontend;
    this.#begin();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#server?.close();
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    this.#socket?.destroy();
    const { addr, server } = this.#settings;
    if (!server || addr.type !== 'unix') return;
    try {
      unlinkSync(addr.path);
    } catch {
      // Somebody else has removed it.
    }
  }

  async #listen(): Promise<void> {
    const { addr } = this.#settings;
    const server = createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
    this.#server = server;
    const outcome = new Gate<NodeJS.ErrnoException | undefined>();
    server.once('error', (error) => outcome.open(error));
    if (addr.type === 'unix') removeStale(addr.path);
    server.listen(listenTarget(addr), () => outcome.open(undefined));
    const error = await outcome.promise;
    if (error) throw failed(addr, 'bind socket to', error);
    server.on('error', () => undefined);
    const bound = server.address();
    if (addr.type === 'inet' && typeof bound === 'object' && bound) this.#where = `tcp:${addr.host}:${bound.port}`;
  }

  #accept(socket: Socket): void {
    if (!this.#socket) this.#use(socket);
    else if (this.#waiting.length < WAITING_MAX) {
      socket.on('error', () => undefined);
      this.#waiting.push(socket);
    } else socket.destroy();
  }

  async #connect(): Promise<void> {
    const { addr } = this.#settings;
    const socket = connectTo(addr);
    const outcome = new Gate<NodeJS.ErrnoException | undefined>();
    socket.once('error', (error) => outcome.open(error));
    socket.once('connect', () => outcome.open(undefined));
    if (addr.type === 'fd') outcome.open(undefined);
    const error = await outcome.promise;
    if (error) throw failed(addr, 'connect to', error);
    this.#use(socket);
  }

  #retry(): void {
    if (this.#closed) return;
    this.#connect().catch((error: unknown) => {
      if (!(error instanceof QmpError)) throw error;
      this.#timer = setTimeout(() => this.#retry(), this.#settings.reconnect * 1000);
    });
  }

  #use(socket: Socket): void {
    socket.setNoDelay(this.#settings.nodelay || this.#settings.addr.type === 'inet');
    socket.on('error', () => undefined);
    this.#socket = socket;
    this.#first.open();
    this.#begin();
  }

  #begin(): void {
    const [socket, frontend] = [this.#socket, this.#frontend];
    if (!socket || !frontend || this.#link) return;
    this.#link = new StreamLink(socket, socket);
    this.#link.start(frontend, () => {
      socket.destroy();
      this.#link = undefined;
      this.#socket = undefined;
      const next = this.#waiting.shift();
      if (next) this.#use(next);
      if (!this.#settings.server && this.#settings.reconnect > 0) this.#retry();
    });
    socket.resume();
  }
}

export function addressText(addr: SocketAddress): string {
  switch (addr.type) {
    case 'inet':
      return `tcp:${addr.host}:${addr.port}`;
    case 'unix':
      return `unix:${addr.path}`;
    case 'fd':
      return `fd:${addr.str}`;
    default:
      return `vsock:${addr.cid}:${addr.port}`;
  }
}

function listenTarget(addr: SocketAddress): { path: string } | { host: string; port: number } | { fd: number } {
  switch (addr.type) {
    case 'inet':
      return { host: addr.host === '' ? '::' : addr.host, port: portOf(addr.port) };
    case 'unix':
      return { path: addr.path };
    case 'fd':
      return { fd: descriptorOf(addr.str) };
    default:
      throw new QmpError('socket address family AF_VSOCK unsupported');
  }
}

function connectTo(addr: SocketAddress): Socket {
  if (addr.type === 'fd') return new Socket({ fd: descriptorOf(addr.str), readable: true, writable: true });
  return createConnection(listenTarget(addr) as { path: string } | { host: string; port: number });
}

/** A port by its number. */
export function portOf(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (port <= 65_535) return port;
  throw new QmpError(`address resolution failed for port '${text}': it is not a number up to 65535`);
}

/** A descriptor that was handed to this process. */
export function descriptorOf(text: string): number {
  const fd = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isInteger(fd)) return fd;
  throw new QmpError(`File descriptor '${text}' has not been found`);
}

function failed(addr: SocketAddress, verb: string, error: NodeJS.ErrnoException): QmpError {
  const where = addr.type === 'unix' ? addr.path : addressText(addr);
  return new QmpError(`Failed to ${verb} ${where}: ${errnoText(errnoOf(error))}`, 'GenericError', error);
}

/** As QEMU does: a path is taken over, whoever made it. */
function removeStale(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // There is none.
  }
}
