/** Connections to the servers of one node: those that are idle are used again; through the proxy where there is one. */
import { connect, isIP, type Socket } from 'node:net';
import { Errno } from '../../base/errors.ts';
import { Connection, type ConnectionOwner, type OnRead } from './connection.ts';
import { type Exchange, Refusal, type Transport } from './exchange.ts';
import { HeadReader, NOT_HTTP } from './head.ts';
import type { HttpSettings } from './settings.ts';

/** The server, where it redirects to, the proxy, and one more. */
const SESSIONS_MAX = 4;

export class HttpTransport implements Transport, ConnectionOwner {
  readonly #settings: HttpSettings;
  /** All of them, by what they lead to: an origin. */
  readonly #origins = new Map<Connection, string>();
  /** The one that was used last at the end. */
  readonly #idle: Connection[] = [];
  /** TLS sessions, by origin: to go on with one is a round trip less. */
  readonly #sessions = new Map<string, Uint8Array>();

  constructor(settings: HttpSettings) {
    this.#settings = settings;
  }

  get(url: URL, headers: Readonly<Record<string, string>>, exchange: Exchange): Connection {
    const connection = this.#take(url);
    const { proxy } = this.#settings;
    const path = `${url.pathname}${url.search}`;
    // A proxy for plain HTTP is asked for the whole URL. [RFC 9112, 3.2.2]
    const whole = proxy !== undefined && url.protocol === 'http:';
    const own = { host: url.host, ...headers, ...(whole ? authorization(proxy) : {}) };
    connection.send(requestHead('GET', whole ? `${url.origin}${path}` : path, own), exchange);
    return connection;
  }

  #take(url: URL): Connection {
    for (let i = this.#idle.length - 1; i >= 0; i--) {
      const connection = this.#idle[i]!;
      if (this.#origins.get(connection) !== url.origin) continue;
      this.#idle.splice(i, 1);
      return connection;
    }
    if (this.#origins.size >= this.#settings.connections) this.#idle[0]?.cut();
    const connection = new Connection(this);
    this.#origins.set(connection, url.origin);
    this.#dial(connection, url);
    return connection;
  }

  /** Makes the socket of a connection. */
  #dial(connection: Connection, url: URL): void {
    const { proxy } = this.#settings;
    if (proxy === undefined) connection.attach(this.#socketTo(url, connection.onRead));
    else if (url.protocol === 'http:') connection.attach(this.#socketTo(proxy.url, connection.onRead));
    else this.#tunnel(connection, url, proxy);
  }

  #socketTo(url: URL, onRead: OnRead | object): Socket {
    const address = { host: hostOf(url), port: portOf(url) };
    return url.protocol === 'http:' ? connect({ ...address, ...onRead }) : this.#secure(url, { ...address, ...onRead });
  }

  #secure(url: URL, base: object): Socket {
    const host = hostOf(url);
    const session = this.#sessions.get(url.origin);
    // Loaded by the first connection that wants it: some 15 ms.
    const socket = process.getBuiltinModule('node:tls').connect({
      ...base,
      ...this.#settings.tls,
      host,
      ALPNProtocols: ['http/1.1'],
      ...(isIP(host) === 0 ? { servername: host } : {}),
      ...(session === undefined ? {} : { session: session as Buffer }),
    });
    socket.on('session', (made: Uint8Array) => {
      if (this.#sessions.size >= SESSIONS_MAX) this.#sessions.clear();
      this.#sessions.set(url.origin, made);
    });
    return socket;
  }

  /** [RFC 9110, 9.3.6] */
  #tunnel(connection: Connection, url: URL, proxy: NonNullable<HttpSettings['proxy']>): void {
    const target = `${url.hostname}:${portOf(url)}`;
    const socket = this.#socketTo(proxy.url, {});
    const reader = new HeadReader();
    connection.through(socket);
    socket.write(requestHead('CONNECT', target, { host: target, ...authorization(proxy) }), 'latin1');
    const answered = (bytes: Uint8Array): void => {
      const more = bytes.length - reader.feed(bytes);
      const { head } = reader;
      if (head === undefined) return;
      if (typeof head === 'string' || more > 0)
        connection.fail(new Refusal(Errno.EIO, typeof head === 'string' ? head : NOT_HTTP));
      else if (head.status < 200) reader.begin(true);
      else if (head.status >= 300) connection.fail(refused(head.status));
      else {
        socket.off('data', answered);
        const secure = this.#secure(url, { socket });
        secure.on('data', (chunk: Uint8Array) => connection.received(chunk));
        connection.attach(secure);
      }
    };
    socket.on('data', answered);
  }

  idle(connection: Connection): void {
    this.#idle.push(connection);
  }

  gone(connection: Connection): void {
    const index = this.#idle.indexOf(connection);
    if (index >= 0) this.#idle.splice(index, 1);
    this.#origins.delete(connection);
  }

  /** Cuts all connections. */
  close(): void {
    for (const connection of [...this.#origins.keys()]) connection.cut();
  }
}

function refused(status: number): Refusal {
  return new Refusal(status === 407 ? Errno.EACCES : Errno.EIO, `the proxy answered ${status}`);
}

function requestHead(method: string, target: string, headers: Readonly<Record<string, string>>): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${target} HTTP/1.1\r\n${lines.join('')}\r\n`;
}

function authorization(proxy: NonNullable<HttpSettings['proxy']>): Record<string, string> {
  return proxy.authorization === undefined ? {} : { 'proxy-authorization': proxy.authorization };
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, '');
}

function portOf(url: URL): number {
  if (url.port !== '') return Number(url.port);
  return url.protocol === 'https:' ? 443 : 80;
}
