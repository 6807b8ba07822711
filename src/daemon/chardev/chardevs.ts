/** The character devices of a daemon, by name. */
import { QmpError } from '../../qmp/errors.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import { type Chardev, type ChardevBackend, type CharFrontend, NullChardev, type SocketAddress } from './chardev.ts';
import { RingbufChardev } from './ringbuf.ts';
import { SocketChardev } from './socket.ts';
import { fileChardev, pipeChardev, stdioChardev } from './stream.ts';

const CHARDEVS_MAX = 256;

interface Entry {
  device: Chardev;
  /** A monitor has it. */
  busy: boolean;
}

export class Chardevs {
  readonly #byId = new Map<string, Entry>();

  async add(id: string, backend: ChardevBackend): Promise<void> {
    if (this.#byId.has(id)) throw new QmpError(`Chardev with id '${id}' already exists`);
    if (this.#byId.size >= CHARDEVS_MAX) throw new QmpError(`Failed to add chardev '${id}': ${CHARDEVS_MAX} are there`);
    const device = await openChardev(id, backend);
    this.#byId.set(id, { device, busy: false });
  }

  /** Gives the device to a monitor, for as long as it is there. */
  attach(id: string, frontend: CharFrontend): void {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`chardev "${id}" not found`);
    if (entry.busy) throw new QmpError(`chardev "${id}" is already in use`);
    if (!entry.device.attach) throw new QmpError(`chardev "${id}" cannot be used by a monitor`);
    entry.busy = true;
    entry.device.attach(frontend);
  }

  /** Another device of that name. */
  async change(id: string, backend: ChardevBackend): Promise<void> {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Chardev '${id}' does not exist`);
    if (entry.busy) throw new QmpError('Chardev user does not support chardev hotswap');
    const device = await openChardev(id, backend);
    entry.device.close();
    entry.device = device;
  }

  remove(id: string): void {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Chardev '${id}' not found`);
    if (entry.busy) throw new QmpError(`Chardev '${id}' is busy`);
    this.#byId.delete(id);
    entry.device.close();
  }

  assertThere(id: string): void {
    if (!this.#byId.has(id)) throw new QmpError(`Chardev '${id}' not found`);
  }

  ringbuf(id: string): RingbufChardev {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Device '${id}' not found`);
    if (entry.device instanceof RingbufChardev) return entry.device;
    throw new QmpError(`${id} is not a ringbuf device`);
  }

  list(): Qapi<'ChardevInfo'>[] {
    return [...this.#byId].map(([label, { device }]) => ({
      label,
      filename: device.filename,
      'frontend-open': device.frontendOpen,
    }));
  }

  closeAll(): void {
    for (const { device } of this.#byId.values()) device.close();
    this.#byId.clear();
  }
}

async function openChardev(id: string, backend: ChardevBackend): Promise<Chardev> {
  try {
    return await open(backend);
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    throw new QmpError(`Failed to add chardev '${id}': ${error.message}`, error.errorClass, error);
  }
}

async function open(backend: ChardevBackend): Promise<Chardev> {
  switch (backend.type) {
    case 'null':
      return new NullChardev();
    case 'stdio':
      return stdioChardev();
    case 'file':
      return fileChardev(backend.data.out, backend.data.in, backend.data.append ?? false);
    case 'pipe':
      return pipeChardev(backend.data.device);
    case 'ringbuf':
    case 'memory':
      return new RingbufChardev(backend.data.size);
    default:
      return openSocket(backend.data);
  }
}

async function openSocket(data: Qapi<'ChardevSocket'>): Promise<Chardev> {
  const { server = true, wait = false, nodelay = false, reconnect = 0, telnet = false } = data;
  if (telnet) throw new QmpError("'telnet' is not supported");
  if (data['tls-creds'] !== undefined) throw new QmpError("'tls-creds' is not supported for character devices");
  if (server && reconnect !== 0)
    throw new QmpError("'reconnect' option is incompatible with socket in server listen mode");
  const device = await SocketChardev.open({ addr: flatAddress(data.addr), server, wait, nodelay, reconnect });
  if (server && wait) await device.connected;
  return device;
}

/** The address without the object around its members. */
export function flatAddress({ type, data }: Qapi<'SocketAddressLegacy'>): SocketAddress {
  return { type, ...data } as SocketAddress;
}
