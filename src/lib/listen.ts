/** From what a program says about where to listen, to addresses that the seam takes. */
import { lookup } from 'node:dns/promises';
import { lstat, stat, unlink } from 'node:fs/promises';
import { createConnection, isIP } from 'node:net';
import { dirname, resolve } from 'node:path';
import type { SocketAddress } from '../aio/backend.ts';
import { Gate } from '../aio/op.ts';
import { describeAddress, fitsUnixPath, isAbstract } from '../aio/socket-address.ts';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';

export interface ListenTarget {
  /** Path of a unix socket; one that begins with NUL is a name in the abstract namespace of Linux. */
  readonly socket?: string | undefined;
  /** Mode of the unix socket's file; default 0o600. */
  readonly socketMode?: number | undefined;
  /** Address or name to listen on; default 127.0.0.1 when there is a port. */
  readonly host?: string | undefined;
  /** Default 10809 when there is a host; 0 for a free one. */
  readonly port?: number | undefined;
  /** A listening socket that was handed to us, or several. They belong to the service from here on. */
  readonly fd?: number | readonly number[] | undefined;
}

export type Listen = SocketAddress | { readonly kind: 'fd'; readonly fd: number };

const NBD_PORT = 10809;

/** Empty when `target` names nothing. Throws EINVAL when it names several, or none that can be. */
export async function listenOf(target: ListenTarget): Promise<readonly Listen[]> {
  const { socket, host, port, fd } = target;
  const named =
    Number(socket !== undefined) + Number(host !== undefined || port !== undefined) + Number(fd !== undefined);
  if (named > 1) throw new BlockError(Errno.EINVAL, 'Could not listen: give one of socket, host and port, or fd');
  if (named === 0) return [];
  if (fd !== undefined) {
    const fds = typeof fd === 'number' ? [fd] : [...new Set(fd)];
    const bad = fds.length === 0 ? 'nothing' : fds.find((entry) => !Number.isInteger(entry) || entry < 0);
    if (bad !== undefined) throw new BlockError(Errno.EINVAL, `fd: ${bad} is not a descriptor`);
    return fds.map((entry) => ({ kind: 'fd', fd: entry }));
  }
  if (socket !== undefined) return [await unixAddress(socket)];
  return [await inetAddress(host ?? '127.0.0.1', port ?? NBD_PORT)];
}

async function unixAddress(socket: string): Promise<SocketAddress> {
  const abstract = isAbstract(socket);
  const path = abstract ? socket : resolve(socket);
  const refuse = (why: string): BlockError =>
    new BlockError(Errno.EINVAL, `Could not listen on '${describeAddress({ kind: 'unix', path })}': ${why}`);
  if (socket === '') throw refuse('the path is empty');
  if (!fitsUnixPath(path)) throw refuse('the path is too long');
  if (abstract) return { kind: 'unix', path };
  if (socket.includes('\0')) throw refuse('there is a zero byte in it');
  const directory = await stat(dirname(path)).catch(() => undefined);
  if (!directory?.isDirectory()) {
    throw new BlockError(Errno.ENOENT, `Could not listen on '${path}': its directory does not exist`);
  }
  await removeStale(path);
  return { kind: 'unix', path };
}

async function inetAddress(host: string, port: number): Promise<SocketAddress> {
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    throw new BlockError(Errno.EINVAL, `port: ${port} is not in 0..65535`);
  }
  if (isIP(host) !== 0) return { kind: 'inet', host, port };
  try {
    const { address } = await lookup(host);
    return { kind: 'inet', host: address, port };
  } catch (error) {
    throw new BlockError(errnoOf(error), `Could not listen on '${host}': the name is not known`, { cause: error });
  }
}

/** Removes a unix socket that nobody listens on any more: what a server leaves behind that was killed. */
async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (!found) return;
  if (!found.isSocket()) {
    const why = 'the file exists and is not a socket';
    throw new BlockError(Errno.EADDRINUSE, `Could not listen on '${path}': ${why}`);
  }
  const outcome = new Gate<string>();
  const probe = createConnection({ path });
  probe.once('connect', () => outcome.open('connected'));
  probe.once('error', (error: NodeJS.ErrnoException) => outcome.open(error.code ?? 'unknown'));
  const result = await outcome.promise;
  probe.destroy();
  if (result === 'ECONNREFUSED') await unlink(path).catch(() => undefined);
  else throw new BlockError(Errno.EADDRINUSE, `Could not listen on '${path}': ${errnoText(Errno.EADDRINUSE)}`);
}
