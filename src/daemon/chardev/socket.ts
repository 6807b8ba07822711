/** Socket devices: one client at a time, or one server that is connected to. */

import { unlinkSync } from 'node:fs';
import { createConnection, createServer, type ListenOptions, type Server, Socket } from 'node:net';
import { Gate } from '../../aio/op.ts';
import { BlockError, errnoOf, errnoText } from '../../base/errors.ts';
import type { TlsSide } from '../../lib/objects/tls.ts';
import { abstractSocket } from '../../native/abstract-socket.ts';
import { QmpError } from '../../qmp/errors.ts';
import { addressText, bindFailure, hostText, portOf, portsOf, resolveHost, socketOf, unixPath } from './address.ts';
import type { Chardev, CharFrontend, SocketAddress } from './chardev.ts';
import type { Framing } from './framing.ts';
import { StreamLink } from './stream.ts';
import { TelnetFraming } from './telnet.ts';
import { acceptWebSocket } from './websocket.ts';

export interface SocketSettings {
  readonly addr: SocketAddress;
  readonly server: boolean;
  readonly nodelay: boolean;
  /** Milliseconds after which a client tries again; 0 for never. */
  readonly reconnectMs: number;
  readonly protocol: 'tcp' | 'telnet' | 'websocket';
  /** What a connection has to go through before anything else. */
  readonly tls: TlsSide | undefined;
}

/** Clients that wait for their turn. */
const WAITING_MAX = 8;
/** Milliseconds in which a client has to say what TLS and a WebSocket begin with. */
const HANDSHAKE_MS = 10_000;

export class SocketChardev implements Chardev {
  readonly #settings: SocketSettings;
  #server: Server | undefined;
  #frontend: CharFrontend | undefined;
  #socket: Socket | undefined;
  /** Clients that come after this one. */
  readonly #waiting: Socket[] = [];
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  #where: string;
  readonly #first = new Gate();

  private constructor(settings: SocketSettings) {
    this.#settings = settings;
    this.#where = addressText(settings.addr, settings.protocol);
  }

  /** Listens, or connects; rejects where it cannot. */
  static async open(settings: SocketSettings): Promise<SocketChardev> {
    const device = new SocketChardev(settings);
    if (settings.server) await device.#listen();
    else if (settings.reconnectMs > 0) device.#retry();
    else await device.#connect();
    return device;
  }

  /** Resolves with the first client. */
  get connected(): Promise<void> {
    return this.#first.promise;
  }

  get filename(): string {
    const role = this.#settings.server ? ',server=on' : '';
    if (!this.#socket) return `disconnected:${this.#where}${role}`;
    const { localAddress, localPort, remoteAddress, remotePort } = this.#socket;
    if (localAddress === undefined || remoteAddress === undefined) return `${this.#where}${role}`;
    const here = `${this.#settings.protocol}:${hostText(localAddress)}:${localPort}`;
    return `${here}${role} <-> ${hostText(remoteAddress)}:${remotePort}`;
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
    if (!server || addr.type !== 'unix' || addr.abstract) return;
    try {
      unlinkSync(addr.path);
    } catch {
      // Somebody else has removed it.
    }
  }

  async #listen(): Promise<void> {
    const { addr } = this.#settings;
    if (addr.type === 'unix' && !addr.abstract) removeStale(addr.path);
    const server = await listening(addr, (socket) => this.#accept(socket));
    server.on('error', () => undefined);
    this.#server = server;
    const bound = server.address();
    if (addr.type === 'inet' && typeof bound === 'object' && bound) {
      this.#where = addressText({ ...addr, port: String(bound.port) }, this.#settings.protocol);
    }
  }

  #accept(socket: Socket): void {
    socket.on('error', () => undefined);
    if (this.#closed) socket.destroy();
    else if (!this.#socket) this.#use(socket);
    else if (this.#waiting.length < WAITING_MAX) this.#waiting.push(socket);
    else socket.destroy();
  }

  async #connect(): Promise<void> {
    const socket = await connected(this.#settings.addr);
    socket.on('error', () => undefined);
    if (this.#closed) socket.destroy();
    else this.#use(socket);
  }

  #retry(): void {
    if (this.#closed) return;
    this.#connect().catch((error: unknown) => {
      if (!(error instanceof QmpError)) throw error;
      this.#timer = setTimeout(() => this.#retry(), this.#settings.reconnectMs);
    });
  }

  #use(socket: Socket): void {
    const { addr, nodelay } = this.#settings;
    socket.setNoDelay(nodelay || addr.type === 'inet');
    if (addr.type === 'inet' && addr['keep-alive']) socket.setKeepAlive(true);
    this.#socket = socket;
    // One who has come and gone makes room, whether anybody has spoken to it or not.
    socket.once('close', () => this.#gone());
    this.#first.open();
    this.#begin();
  }

  #gone(): void {
    this.#socket = undefined;
    const next = this.#waiting.shift();
    if (next) this.#use(next);
    if (!this.#settings.server && this.#settings.reconnectMs > 0) {
      this.#timer = setTimeout(() => this.#retry(), this.#settings.reconnectMs);
    }
  }

  #begin(): void {
    const [socket, frontend] = [this.#socket, this.#frontend];
    if (!socket || !frontend) return;
    const { tls, protocol } = this.#settings;
    if (!tls && protocol !== 'websocket') this.#talk(socket, socket, frontend, framingOf(protocol));
    else this.#greet(socket, frontend).catch((error: unknown) => refused(socket, error));
  }

  /** What has to be agreed on before the conversation, in a time that is bounded. */
  async #greet(socket: Socket, frontend: CharFrontend): Promise<void> {
    const deadline = setTimeout(() => socket.destroy(), HANDSHAKE_MS);
    try {
      const { tls, protocol } = this.#settings;
      const stream = tls ? await tls.handshake(socket) : socket;
      const framing = protocol === 'websocket' ? await acceptWebSocket(stream) : framingOf(protocol);
      if (!socket.destroyed) this.#talk(socket, stream, frontend, framing);
    } finally {
      clearTimeout(deadline);
    }
  }

  #talk(socket: Socket, stream: Socket, frontend: CharFrontend, framing: Framing | undefined): void {
    new StreamLink(stream, stream, framing).start(frontend, () => socket.destroy());
    stream.resume();
  }
}

function framingOf(protocol: SocketSettings['protocol']): Framing | undefined {
  return protocol === 'telnet' ? new TelnetFraming() : undefined;
}

/** A client that could not say who it is, or what it wants. */
function refused(socket: Socket, error: unknown): void {
  if (!(error instanceof Error)) throw error;
  // What it was told goes out first.
  socket.destroySoon();
}

async function listening(addr: SocketAddress, accept: (socket: Socket) => void): Promise<Server> {
  const first = await listenOptions(addr);
  const last = addr.type === 'inet' ? portsOf(addr)[1] : 0;
  for (let port = first.port ?? 0; ; port++) {
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: false }, accept);
    const outcome = new Gate<NodeJS.ErrnoException | undefined>();
    server.once('error', (error) => outcome.open(error));
    server.listen({ ...first, ...(first.port === undefined ? {} : { port }) }, () => outcome.open(undefined));
    const error = await outcome.promise;
    if (!error) return server;
    if (error.code !== 'EADDRINUSE' || port >= last) throw bindFailure(addr, error);
  }
}

type Role = 'server' | 'client';

async function listenOptions(addr: SocketAddress, role: Role = 'server'): Promise<ListenOptions & { fd?: number }> {
  switch (addr.type) {
    case 'inet': {
      const { address, only6 } = await resolveHost(addr, true);
      return { host: address, port: portOf(addr.port), ipv6Only: only6 };
    }
    case 'unix':
      return addr.abstract ? abstractOptions(addr, role) : { path: unixPath(addr) };
    case 'fd':
      return { fd: socketOf(addr.str) };
    default:
      throw new QmpError('socket address family AF_VSOCK unsupported');
  }
}

/** Node.js itself would fill the name up. */
function abstractOptions(
  addr: Extract<SocketAddress, { readonly type: 'unix' }>,
  role: Role,
): { path?: string; fd?: number } {
  const path = unixPath(addr);
  const fd = abstractSocket(path, role);
  if (fd === undefined) return { path };
  if (fd >= 0) return { fd };
  const error = new BlockError(fd, errnoText(fd));
  throw role === 'server' ? bindFailure(addr, error) : connectFailure(addr, error);
}

function connectFailure(addr: SocketAddress, error: NodeJS.ErrnoException | BlockError): QmpError {
  const where = addr.type === 'unix' ? addr.path : addressText(addr).replace('tcp:', '');
  return new QmpError(`Failed to connect to '${where}': ${errnoText(errnoOf(error))}`, 'GenericError', error);
}

async function connected(addr: SocketAddress): Promise<Socket> {
  const { host, port, path, fd } = await connectOptions(addr);
  if (fd !== undefined) return new Socket({ fd, readable: true, writable: true });
  const socket = path === undefined ? createConnection({ host, port: port! }) : createConnection({ path });
  const outcome = new Gate<NodeJS.ErrnoException | undefined>();
  socket.once('error', (error) => outcome.open(error));
  socket.once('connect', () => outcome.open(undefined));
  const error = await outcome.promise;
  if (!error) return socket;
  throw connectFailure(addr, error);
}

async function connectOptions(addr: SocketAddress): Promise<ListenOptions & { fd?: number }> {
  if (addr.type !== 'inet') return listenOptions(addr, 'client');
  return { host: (await resolveHost(addr, false)).address, port: portOf(addr.port) };
}

/** As QEMU does: a path is taken over, whoever made it. */
function removeStale(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // There is none.
  }
}
