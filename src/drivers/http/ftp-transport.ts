/**
 * Ranges by FTP: for each a data connection, which begins where the range does (REST, RFC 3659) and is cut where it
 * ends. Before each, SIZE and MDTM say whether the file is what it was. Control connections are used again.
 *
 * The commands and what servers answer to them are the library's, which bounds what it keeps of an answer, and goes to
 * no other host for data than the one it is logged in at.
 */
import { isIP } from 'node:net';
import type { Client } from 'basic-ftp';
import { spawn } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { type Bytes, MAX_OFFSET, type Offset } from '../../base/units.ts';
import { type Asking, type Exchange, Refusal, type Transport } from './exchange.ts';
import type { HttpSettings } from './settings.ts';

const MS = 1e6;
/** Services of these names: [RFC 959], and the one that begins with TLS. */
const PORT = 21;
const TLS_PORT = 990;

export class FtpTransport implements Transport {
  readonly #settings: HttpSettings;
  readonly #makeClient: new (
    timeoutMs: number,
  ) => Client;
  readonly #path: string;
  readonly #idle: Client[] = [];
  readonly #busy = new Set<Transfer>();

  /** Throws EINVAL where the URL names nothing that FTP could. `makeClient`: of the library, loaded by now. */
  constructor(settings: HttpSettings, makeClient: new (timeoutMs: number) => Client) {
    this.#settings = settings;
    this.#makeClient = makeClient;
    this.#path = pathOf(settings);
  }

  get(_url: URL, headers: Readonly<Record<string, string>>, exchange: Exchange): Asking {
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    const transfer = new Transfer(this, this.#path, Number(first), Number(last), exchange);
    this.#busy.add(transfer);
    spawn(transfer.run());
    return transfer;
  }

  /** One that is idle, or a new one. Throws what went wrong. */
  async take(hold: (client: Client) => void): Promise<Client> {
    for (let idle = this.#idle.pop(); idle !== undefined; idle = this.#idle.pop()) {
      if (idle.closed) continue;
      hold(idle);
      return idle;
    }
    const { url, timeoutNs, tls, login } = this.#settings;
    const client = new this.#makeClient(timeoutNs / MS);
    hold(client);
    const host = url.hostname.replace(/^\[|\]$/g, '');
    if (url.protocol === 'ftps:') {
      const name = isIP(host) === 0 ? { servername: host } : {};
      await client.connectImplicitTLS(host, Number(url.port || TLS_PORT), { ...tls, ...name });
    } else await client.connect(host, Number(url.port || PORT));
    await client.login(login?.username, login?.password);
    await client.send('TYPE I');
    if (url.protocol === 'ftps:') {
      await client.send('PBSZ 0');
      await client.send('PROT P');
    }
    return client;
  }

  /** @internal `client`: to be used again. */
  done(transfer: Transfer, client?: Client): void {
    this.#busy.delete(transfer);
    if (client === undefined) return;
    if (this.#idle.length < this.#settings.connections) this.#idle.push(client);
    else client.close();
  }

  close(): void {
    for (const transfer of [...this.#busy]) transfer.cut();
    for (const client of this.#idle.splice(0)) client.close();
  }
}

class Transfer implements Asking {
  readonly #owner: FtpTransport;
  readonly #path: string;
  readonly #first: Offset;
  readonly #last: Offset;
  readonly #exchange: Exchange;
  #client: Client | undefined;
  #over = false;

  constructor(owner: FtpTransport, path: string, first: Offset, last: Offset, exchange: Exchange) {
    this.#owner = owner;
    this.#path = path;
    this.#first = first;
    this.#last = last;
    this.#exchange = exchange;
  }

  cut(): void {
    this.#over = true;
    this.#client?.close();
    this.#owner.done(this);
  }

  async run(): Promise<void> {
    try {
      const client = await this.#owner.take((made) => {
        this.#client = made;
        if (this.#over) made.close();
      });
      const length = await this.#head(client);
      if (this.#over) return;
      if (length > 0) await this.#body(client, length);
      if (this.#over) return;
      this.#over = true;
      this.#owner.done(this, client);
      this.#exchange.end();
    } catch (error) {
      if (this.#over) return;
      this.cut();
      this.#exchange.failed(refusal(error));
    }
  }

  /** Says what the file is now; how many bytes of the range there are. */
  async #head(client: Client): Promise<Bytes> {
    const said = await client.send(`SIZE ${this.#path}`);
    const [, text] = /^213 (\d{1,16})\s*$/.exec(said.message) ?? [];
    const size = Number(text ?? Number.NaN);
    if (!(size <= MAX_OFFSET)) throw new Refusal(Errno.EIO, 'the server does not say how long the file is (SIZE)');
    const { code, message } = await client.sendIgnoringError(`MDTM ${this.#path}`);
    const modified = code === 213 ? { 'last-modified': message.slice(4).trim() } : {};
    const last = Math.min(this.#last, size - 1);
    if (this.#over) return 0;
    if (this.#first > last) {
      this.#exchange.head(416, { 'content-range': `bytes */${size}` });
      return 0;
    }
    this.#exchange.head(206, { 'content-range': `bytes ${this.#first}-${last}/${size}`, ...modified });
    return last - this.#first + 1;
  }

  /** Ends when all bytes have come and the server has said so, or fewer. */
  async #body(client: Client, length: Bytes): Promise<void> {
    await client.prepareTransfer(client.ftp);
    const { code } = await client.sendIgnoringError(`REST ${this.#first}`);
    if (code !== 350) throw new Refusal(Errno.ENOTSUP, 'the server does not read from within a file, which is needed');
    let left = length;
    const data = client.ftp.dataSocket!;
    data.on('data', (chunk: Uint8Array) => {
      const part = chunk.length > left ? chunk.subarray(0, left) : chunk;
      left -= part.length;
      if (part.length > 0 && !this.#over) this.#exchange.data(part);
      if (left === 0) data.destroy();
    });
    let closed = false;
    let answered = false;
    let look: () => void = () => undefined;
    data.once('close', () => {
      closed = true;
      look();
    });
    await client.ftp.handle(`RETR ${this.#path}`, (reply, task) => {
      // Once we have cut it, the server says whatever it likes to that.
      if (reply instanceof Error && (left > 0 || !('code' in reply))) task.reject(reply);
      else if (reply instanceof Error || reply.code >= 200) answered = true;
      look = () => answered && closed && task.resolve(undefined);
      look();
    });
  }
}

/** The path of a URL begins where one is after the login. [RFC 1738, 3.2.2] */
function pathOf({ url, shown }: HttpSettings): string {
  const refuse = (why: string): BlockError =>
    new BlockError(Errno.EINVAL, `Could not open '${shown}': ${why}`, { where: { op: 'open' } });
  let path: string;
  try {
    path = decodeURIComponent(url.pathname.slice(1).replace(/;type=i$/i, ''));
  } catch {
    throw refuse('the path in it is not percent-encoded text');
  }
  if (path === '') throw refuse('it names no file');
  if (/\p{Cc}/u.test(path)) throw refuse('the path in it has characters that FTP cannot hold');
  return path;
}

/** Answers by their numbers [RFC 959, 4.2]; what else fails, without the words of others. */
function refusal(error: unknown): Error {
  if (!(error instanceof Error) || error instanceof Refusal) return error as Error;
  const { code } = error as { readonly code?: unknown };
  if (typeof code === 'number') {
    const why = `the server answered ${code}`;
    if (code === 430 || code === 530 || code === 532) return new Refusal(Errno.EACCES, `${why} (not allowed)`);
    if (code === 550) return new Refusal(Errno.ENOENT, `${why} (not found)`);
    return new Refusal(Errno.EIO, why, code >= 400 && code < 500);
  }
  if (typeof code === 'string') return error;
  if (/timeout/i.test(error.message)) return new Refusal(Errno.ETIMEDOUT, 'the server did not answer in time', true);
  if (/FIN packet|closed connection|Client is closed/.test(error.message)) {
    return new Refusal(Errno.ECONNRESET, 'the connection was cut', true);
  }
  return new Refusal(Errno.EIO, 'the server does not speak FTP as it should');
}
