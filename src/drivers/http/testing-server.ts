/** A web server that does as a test says: ranges of a file in memory, unless a script answers instead. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';

/** A request that has come, and the range that it asks for, both ends included. */
export interface Asked {
  readonly url: string;
  readonly headers: IncomingMessage['headers'];
  readonly first: number;
  readonly last: number;
}

/** Answers a request, or answers false: then the server does. */
export type Script = (asked: Asked, response: ServerResponse) => boolean | undefined;

export class RangeServer {
  readonly asked: Asked[] = [];
  bytes: Uint8Array;
  etag: string | undefined = '"1"';
  lastModified: string | undefined;
  script: Script | undefined;
  /** Requests that have not been answered, and the most there have been. */
  open = 0;
  mostOpen = 0;
  /** Bytes of bodies that were asked for. */
  bytesAsked = 0;
  readonly server: Server;
  readonly #protocol: string;

  private constructor(bytes: Uint8Array, tls: { readonly key: string; readonly cert: string } | undefined) {
    this.bytes = bytes;
    const answer = (request: IncomingMessage, response: ServerResponse): void => this.#answer(request, response);
    this.server = tls ? createTlsServer(tls, answer) : createServer(answer);
    this.#protocol = tls ? 'https' : 'http';
  }

  /** Ends with the test. */
  static async start(
    t: Pick<TestContext, 'after'>,
    bytes: Uint8Array,
    tls?: { readonly key: string; readonly cert: string },
  ): Promise<RangeServer> {
    const server = new RangeServer(bytes, tls);
    await server.listen();
    t.after(() => server.stop());
    return server;
  }

  async listen(): Promise<void> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
  }

  async stop(): Promise<void> {
    if (!this.server.listening) return;
    const closed = once(this.server, 'close');
    this.server.close();
    this.server.closeAllConnections();
    await closed;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  url(path = '/disk.img', userinfo = ''): string {
    return `${this.#protocol}://${userinfo}127.0.0.1:${this.port}${path}`;
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { headers, url = '', method } = request;
    if (method === 'HEAD') {
      // nbdkit and QEMU ask first.
      response.writeHead(200, { 'accept-ranges': 'bytes', 'content-length': String(this.bytes.length) }).end();
      return;
    }
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    const asked = { url, headers, first: Number(first ?? -1), last: Number(last ?? -1) };
    this.asked.push(asked);
    this.bytesAsked += asked.last - asked.first + 1;
    this.mostOpen = Math.max(this.mostOpen, ++this.open);
    response.on('close', () => {
      this.open--;
    });
    response.on('error', () => undefined);
    if (this.script === undefined || this.script(asked, response) === false) this.serve(asked, response);
  }

  /** What a good server answers. */
  serve({ first, last }: Asked, response: ServerResponse, more: Record<string, string> = {}): void {
    const end = Math.min(last, this.bytes.length - 1);
    if (first < 0 || first > end) {
      response.writeHead(416, { 'content-range': `bytes */${this.bytes.length}` }).end();
      return;
    }
    const headers = {
      'content-range': `bytes ${first}-${end}/${this.bytes.length}`,
      'content-length': String(end - first + 1),
      ...(this.etag === undefined ? {} : { etag: this.etag }),
      ...(this.lastModified === undefined ? {} : { 'last-modified': this.lastModified }),
      ...more,
    };
    response.writeHead(206, headers).end(this.bytes.subarray(first, end + 1));
  }
}
