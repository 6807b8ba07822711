/** An FTP server that does as a test says: one file in memory, unless a script answers instead. */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { createServer as createTlsServer } from 'node:tls';

/** Answers a command, or answers false: then the server does. */
export type FtpScript = (command: string, argument: string, control: Socket) => boolean | undefined;

export class FtpServer {
  bytes: Uint8Array;
  modified = '20260101000000';
  script: FtpScript | undefined;
  /** All commands, without what was said to PASS. */
  readonly heard: string[] = [];
  logins = 0;
  /** What a data connection does when a file is wanted; default: sends it from there. */
  transfer: (data: Socket, from: number) => void = (data, from) => void data.end(this.bytes.subarray(from));
  greeting = '220 ready';
  readonly #tls: { readonly key: string; readonly cert: string } | undefined;
  readonly #sockets = new Set<Socket>();
  readonly #servers = new Set<Server>();
  #port = 0;

  private constructor(bytes: Uint8Array, tls: { readonly key: string; readonly cert: string } | undefined) {
    this.bytes = bytes;
    this.#tls = tls;
  }

  /** Ends with the test. */
  static async start(
    t: Pick<TestContext, 'after'>,
    bytes: Uint8Array,
    tls?: { readonly key: string; readonly cert: string },
  ): Promise<FtpServer> {
    const server = new FtpServer(bytes, tls);
    server.#port = await server.#listen((control) => server.#serve(control));
    t.after(() => {
      for (const socket of server.#sockets) socket.destroy();
      for (const one of server.#servers) one.close();
    });
    return server;
  }

  url(path = '/disk.img', userinfo = 'me:hush@'): string {
    return `${this.#tls ? 'ftps' : 'ftp'}://${userinfo}127.0.0.1:${this.#port}${path}`;
  }

  async #listen(take: (socket: Socket) => void): Promise<number> {
    const accept = (socket: Socket): void => {
      this.#sockets.add(socket.on('error', () => undefined));
      socket.on('close', () => this.#sockets.delete(socket));
      take(socket);
    };
    const server: Server = this.#tls ? createTlsServer(this.#tls, accept) : createServer(accept);
    this.#servers.add(server);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return (server.address() as AddressInfo).port;
  }

  #serve(control: Socket): void {
    const say = (line: string): void => void control.write(`${line}\r\n`);
    let data: Promise<Socket> | undefined;
    let from = 0;
    let kept = '';
    const obey = async (line: string): Promise<void> => {
      const [, command = '', argument = ''] = /^(\S+) ?(.*)$/.exec(line) ?? [];
      this.heard.push(command === 'PASS' ? command : line);
      if (this.script?.(command, argument, control)) return;
      switch (command) {
        case 'USER':
          return say('331 password');
        case 'PASS':
          if (argument === 'hush') this.logins++;
          return say(argument === 'hush' ? '230 welcome' : '530 no');
        case 'SIZE':
          return say(argument === 'disk.img' ? `213 ${this.bytes.length}` : '550 no such file');
        case 'MDTM':
          return say(`213 ${this.modified}`);
        case 'EPSV': {
          let come: (socket: Socket) => void;
          data = new Promise((resolve) => {
            come = resolve;
          });
          return say(`229 here (|||${await this.#listen((socket) => come(socket))}|)`);
        }
        case 'REST':
          from = Number(argument);
          return say('350 from there');
        case 'RETR': {
          say('150 here it comes');
          const socket = await data!;
          this.transfer(socket, from);
          // Rejects where the other side cuts it.
          if (!socket.closed) await once(socket, 'close').catch(() => undefined);
          return say(socket.errored ? '426 cut' : '226 done');
        }
        default:
          return say('200 fine');
      }
    };
    control.setEncoding('latin1').on('data', (text) => {
      const lines = (kept + text).split('\r\n');
      kept = lines.pop()!;
      for (const line of lines) void obey(line);
    });
    say(this.greeting);
  }
}
