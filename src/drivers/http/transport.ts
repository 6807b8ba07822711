/** Connections to the servers of one node: a pool for each origin, through the proxy where there is one. */
import type { Dispatcher, Pool } from 'undici';
import type { HttpSettings } from './settings.ts';

/** A server's header section is a few hundred bytes; with more than this the request fails. */
const HEADER_BYTES = 32 * 1024;
/** The original server, where it redirected to, and one more. */
const ORIGINS_MAX = 3;
const MS = 1e6;

type Undici = typeof import('undici');

export class Transport {
  readonly #undici: Undici;
  readonly #settings: HttpSettings;
  /** By origin, the one that was used last at the end. */
  readonly #pools = new Map<string, Dispatcher>();

  private constructor(undici: Undici, settings: HttpSettings) {
    this.#undici = undici;
    this.#settings = settings;
  }

  /** The client is loaded when the first node wants it. */
  static async create(settings: HttpSettings): Promise<Transport> {
    return new Transport(await import('undici'), settings);
  }

  /** Begins a GET. `handler` is told what becomes of it, perhaps before this returns. */
  dispatch(url: URL, headers: Record<string, string>, handler: Dispatcher.DispatchHandler): void {
    const { proxy } = this.#settings;
    const path = `${url.pathname}${url.search}`;
    const request = { method: 'GET', origin: url.origin, path, headers } as const;
    const pool = this.#pool(url);
    if (proxy === undefined || url.protocol === 'https:') {
      pool.dispatch(request, handler);
      return;
    }
    // A proxy for plain HTTP is asked for the whole URL. [RFC 9112, 3.2.2]
    const { authorization } = proxy;
    const own = { host: url.host, ...(authorization === undefined ? {} : { 'proxy-authorization': authorization }) };
    pool.dispatch(
      { ...request, origin: proxy.url.origin, path: `${url.origin}${path}`, headers: { ...headers, ...own } },
      handler,
    );
  }

  #pool(url: URL): Dispatcher {
    const { origin } = url;
    const pool = this.#pools.get(origin) ?? this.#connectTo(url);
    this.#pools.delete(origin);
    this.#pools.set(origin, pool);
    for (const [old, unused] of this.#pools) {
      if (this.#pools.size <= ORIGINS_MAX) break;
      this.#pools.delete(old);
      unused.destroy().catch(() => undefined);
    }
    return pool;
  }

  #connectTo(url: URL): Dispatcher {
    const { connections, timeoutNs, tls, proxy } = this.#settings;
    const connect = { ...tls, timeout: timeoutNs / MS };
    // The timeouts of requests are the node's own.
    const options: Pool.Options = {
      ...{ connections, pipelining: 1, headersTimeout: 0, bodyTimeout: 0, maxHeaderSize: HEADER_BYTES, allowH2: false },
    };
    if (proxy === undefined) return new this.#undici.Pool(url.origin, { ...options, connect });
    if (url.protocol === 'http:') return new this.#undici.Pool(proxy.url.origin, { ...options, connect });
    const { authorization: token } = proxy;
    return new this.#undici.ProxyAgent({
      ...options,
      ...{ uri: proxy.url.href, requestTls: connect, proxyTls: connect },
      ...(token === undefined ? {} : { token }),
    });
  }

  /** Cuts all connections. */
  async close(): Promise<void> {
    const pools = [...this.#pools.values()];
    this.#pools.clear();
    await Promise.all(pools.map((pool) => pool.destroy()));
  }
}
