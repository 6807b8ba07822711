/**
 * Datagrams of UDP, to one address and from it. There are no connections: a conversation begins with the device, and
 * again with the first datagram after the other side was found to be away. What is sent at once goes in one datagram
 * where it fits; what comes while nobody listens is lost.
 */
import { createSocket, type Socket } from 'node:dgram';
import { isIPv6 } from 'node:net';
import { Gate } from '../../aio/op.ts';
import { errnoOf, errnoText } from '../../base/errors.ts';
import { QmpError } from '../../qmp/errors.ts';
import { portOf, resolveHost } from './address.ts';
import type { Chardev, CharFrontend, CharLink, CharListener, SocketAddress } from './chardev.ts';

/** 65,535 less the headers of IPv6 and UDP. */
const PAYLOAD_MAX = 65_487;

export class DatagramChardev implements Chardev, CharLink {
  readonly filename = 'udp';
  readonly #socket: Socket;
  #frontend: CharFrontend | undefined;
  #listener: CharListener | undefined;
  #paused = false;
  /** Sent, and not gone yet. */
  #unsent = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('message', (bytes) => this.#received(bytes));
    // Nobody is there: what the network has told of an earlier datagram.
    socket.on('error', () => this.#lost());
  }

  /** `local`: where the other side's datagrams come to; default any port. Rejects with QmpError. */
  static async open(remote: SocketAddress, local: SocketAddress | undefined): Promise<DatagramChardev> {
    const target = await hostOf(remote, false);
    const own = local && (await hostOf(local, true));
    const socket = createSocket(isIPv6(target.address) ? 'udp6' : 'udp4');
    const outcome = new Gate<NodeJS.ErrnoException | undefined>();
    socket.once('error', (error) => outcome.open(error));
    socket.bind({ port: own?.port ?? 0, address: own?.address || undefined, exclusive: true }, () =>
      socket.connect(target.port, target.address, (error?: Error) => outcome.open(error)),
    );
    const error = await outcome.promise;
    if (!error) return new DatagramChardev(socket);
    socket.close();
    throw new QmpError(`Failed to bind socket: ${errnoText(errnoOf(error))}`, 'GenericError', error);
  }

  attach(frontend: CharFrontend): void {
    this.#frontend = frontend;
    this.#begin();
  }

  get unsent(): number {
    return this.#unsent;
  }

  send(text: string): void {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length; at += PAYLOAD_MAX) this.#write(bytes.subarray(at, at + PAYLOAD_MAX));
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
  }

  cut(): void {
    this.#lost();
  }

  close(): void {
    this.#socket.close();
  }

  #write(bytes: Uint8Array): void {
    this.#unsent += bytes.length;
    this.#socket.send(bytes, (error) => {
      this.#unsent -= bytes.length;
      if (error) this.#lost();
      else if (this.#unsent === 0) this.#listener?.drained();
    });
  }

  #received(bytes: Uint8Array): void {
    if (!this.#listener) this.#begin();
    if (!this.#paused) this.#listener?.received(bytes);
  }

  #begin(): void {
    this.#paused = false;
    this.#listener = this.#frontend?.opened(this);
  }

  #lost(): void {
    const listener = this.#listener;
    this.#listener = undefined;
    listener?.closed();
  }
}

/** `toListen`: no host stands for all addresses there are. */
async function hostOf(addr: SocketAddress, toListen: boolean): Promise<{ address: string; port: number }> {
  if (addr.type !== 'inet') throw new QmpError('socket type unsupported for datagram');
  const address = toListen && addr.host === '' ? '' : (await resolveHost(addr, toListen)).address;
  return { address, port: addr.port === '' ? 0 : portOf(addr.port) };
}
