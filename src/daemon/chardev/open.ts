/** Devices from what `chardev-add` says of them. */

import type { ObjectStore } from '../../lib/objects/store.ts';
import { clientSideOf, serverSideOf } from '../../lib/objects/tls.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import { flatAddress } from './address.ts';
import { type Chardev, type ChardevBackend, SinkChardev, type SocketAddress } from './chardev.ts';
import { DatagramChardev } from './datagram.ts';
import { MuxChardev } from './mux.ts';
import { RingbufChardev } from './ringbuf.ts';
import { SocketChardev } from './socket.ts';
import { fileChardev, pipeChardev, stdioChardev } from './stream.ts';
import { PtyChardev, parallelChardev, serialChardev } from './terminal.ts';

export interface ChardevWorld {
  /** Where credentials are. */
  readonly objects: () => ObjectStore;
  /** A user at a terminal wants the daemon to end. */
  readonly onEnd: () => void;
}

/** Rejects with QmpError. What a `mux` is on is the caller's affair. */
export async function openChardev(backend: ChardevBackend, world: ChardevWorld): Promise<Chardev> {
  switch (backend.type) {
    case 'null':
      return new SinkChardev('null');
    case 'stdio':
      return stdioChardev();
    case 'file':
      return fileChardev(backend.data.out, backend.data.in, backend.data.append ?? false);
    case 'pipe':
      return pipeChardev(backend.data.device);
    case 'ringbuf':
    case 'memory':
      return new RingbufChardev(backend.data.size);
    case 'pty':
      return new PtyChardev(backend.data.path);
    case 'serial':
      return serialChardev(backend.data.device);
    case 'parallel':
      return parallelChardev(backend.data.device);
    case 'mux':
      return new MuxChardev(world.onEnd);
    case 'udp': {
      const { remote, local } = backend.data;
      return DatagramChardev.open(flatAddress(remote), local && flatAddress(local));
    }
    case 'socket':
      return openSocket(backend.data, world.objects());
    default:
      throw new QmpError(`'${backend.type}' is not a valid char driver name`);
  }
}

async function openSocket(data: Qapi<'ChardevSocket'>, objects: ObjectStore): Promise<Chardev> {
  const { server = true, wait, nodelay = false, telnet = false, websocket = false } = data;
  const { reconnect = 0, 'reconnect-ms': reconnectMs = reconnect * 1000 } = data;
  assertTogether(data, server, reconnectMs);
  const addr = flatAddress(data.addr);
  const device = await SocketChardev.open({
    ...{ addr, server, nodelay, reconnectMs },
    protocol: websocket ? 'websocket' : telnet ? 'telnet' : 'tcp',
    tls: await tlsOf(data, addr, server, objects),
  });
  if (server && (wait ?? false)) await device.connected;
  return device;
}

/** Options that do not go together. */
function assertTogether(data: Qapi<'ChardevSocket'>, server: boolean, reconnectMs: number): void {
  if (data.reconnect !== undefined && data['reconnect-ms'] !== undefined) {
    throw new QmpError("'reconnect' and 'reconnect-ms' are mutually exclusive");
  }
  if (server && reconnectMs !== 0) {
    throw new QmpError("'reconnect' option is incompatible with socket in server listen mode");
  }
  if (reconnectMs < 0) throw new QmpError("'reconnect' is a time, and not less than 0");
  if (!server && data.wait !== undefined) {
    throw new QmpError("'wait' option is incompatible with socket in client connect mode");
  }
  if (!server && data.websocket) throw new QmpError('Websocket client is not implemented');
  if (data.tn3270) throw new QmpError("'tn3270' is not supported: it is for terminals of s390 machines");
  if (data['tls-authz'] !== undefined && data['tls-creds'] === undefined) {
    throw new QmpError("'tls_authz' option requires 'tls_creds' option");
  }
}

async function tlsOf(data: Qapi<'ChardevSocket'>, addr: SocketAddress, server: boolean, objects: ObjectStore) {
  const creds = data['tls-creds'];
  if (creds === undefined) return undefined;
  if (server) return serverSideOf(objects, creds, data['tls-authz']);
  return clientSideOf(objects, creds, addr.type === 'inet' ? addr.host : undefined);
}
