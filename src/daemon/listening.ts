/** Servers at addresses as QAPI has them. */
import { BlockError, Errno } from '../base/errors.ts';
import { type Listen, listenOf } from '../lib/listen.ts';
import { QmpError } from '../qmp/errors.ts';
import { bindFailure, descriptorOf, hostsToListen, type InetAddress, portsOf, unixPath } from './chardev/address.ts';
import type { SocketAddress } from './chardev/chardev.ts';

type Start<T> = (listen: readonly Listen[]) => Promise<T>;

/** Calls `start` with what is to be listened on; where there are several ways, until it can. Rejects with QmpError, or
 *  with what `start` rejects with. */
export async function listening<T>(addr: SocketAddress, start: Start<T>): Promise<T> {
  if (addr.type === 'inet') return listeningInet(addr, start);
  try {
    return await start(await listenOf(targetOf(addr)));
  } catch (error) {
    throw listenFailure(addr, error);
  }
}

/** Throws QmpError. */
export function targetOf(addr: Exclude<SocketAddress, InetAddress>) {
  switch (addr.type) {
    case 'unix':
      return { socket: unixPath(addr) };
    case 'fd':
      return { fd: descriptorOf(addr.str) };
    default:
      throw new QmpError('socket address family AF_VSOCK unsupported');
  }
}

/** At all addresses of the host, or else at the first of them that can be had; each at the first port that is free. */
async function listeningInet<T>(addr: InetAddress, start: Start<T>): Promise<T> {
  const [first, last] = portsOf(addr);
  const hosts = await hostsToListen(addr);
  let failure: unknown;
  for (const some of hosts.length === 1 ? [hosts] : [hosts, ...hosts.map((host) => [host])]) {
    for (let port = first; port <= last; port++) {
      try {
        return await start(some.map(({ address, only6 }) => ({ kind: 'inet', host: address, port, only6 })));
      } catch (error) {
        failure ??= error;
        if (!(error instanceof BlockError && error.errno === Errno.EADDRINUSE)) break;
      }
    }
  }
  throw listenFailure(addr, failure);
}

/** What a client is told where nothing could be listened on; anything else stays what it is. */
export function listenFailure(addr: SocketAddress, error: unknown): unknown {
  const bound = error instanceof BlockError && error.message.startsWith('Could not listen on ');
  return bound && addr.type !== 'fd' ? bindFailure(addr, error) : error;
}
