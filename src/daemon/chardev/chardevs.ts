/** The character devices of a daemon, by name. */
import { QmpError, qmpError } from '../../qmp/errors.ts';
import type { Qapi } from '../../qmp/schema/schema.ts';
import type { Chardev, ChardevBackend, CharFrontend } from './chardev.ts';
import { CharLog } from './log.ts';
import { MuxChardev } from './mux.ts';
import { type ChardevWorld, openChardev } from './open.ts';
import { RingbufChardev } from './ringbuf.ts';

const CHARDEVS_MAX = 256;

/** A device that cannot be had as it is asked for. */
export class ChardevFailure extends QmpError {}

interface Entry {
  kind: ChardevBackend['type'];
  device: Chardev;
  log: CharLog | undefined;
  /** Monitors that have it, and what is on top of it. */
  users: number;
  /** The mux that is on top of it. */
  mux?: Entry;
}

export class Chardevs {
  readonly #world: ChardevWorld;
  readonly #byId = new Map<string, Entry>();

  constructor(world: ChardevWorld) {
    this.#world = world;
  }

  /** Answers what others need to know of it. */
  async add(id: string, backend: ChardevBackend): Promise<Qapi<'ChardevReturn'>> {
    if (this.#byId.has(id)) throw new QmpError(`Chardev with id '${id}' already exists`);
    if (this.#byId.size >= CHARDEVS_MAX) throw new QmpError(`there are ${CHARDEVS_MAX} already`);
    const base = backend.type === 'mux' ? this.#free(backend.data.chardev) : undefined;
    const entry = { ...(await this.#open(backend)), kind: backend.type, users: 0 };
    this.#byId.set(id, entry);
    if (base && entry.device instanceof MuxChardev) {
      base.mux = entry;
      this.#give(base, entry.device);
    }
    return told(entry.device);
  }

  /** Gives the device to a monitor, for as long as it is there. */
  attach(id: string, frontend: CharFrontend): void {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`chardev "${id}" not found`);
    assertFree(id, entry);
    this.#give(entry, frontend);
  }

  /** Another device of that name. */
  async change(id: string, backend: ChardevBackend): Promise<Qapi<'ChardevReturn'>> {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Chardev '${id}' does not exist`);
    if (entry.device instanceof MuxChardev || backend.type === 'mux') {
      throw new QmpError('Mux device hotswap not supported yet');
    }
    if (entry.users > 0) throw new QmpError('Chardev user does not support chardev hotswap');
    const { device, log } = await this.#open(backend);
    close(entry);
    Object.assign(entry, { kind: backend.type, device, log });
    return told(device);
  }

  remove(id: string): void {
    const entry = this.#entry(id);
    // What it is on top of would not be free again.
    if (entry.users > 0 || entry.device instanceof MuxChardev) throw new QmpError(`Chardev '${id}' is busy`);
    this.#byId.delete(id);
    close(entry);
  }

  sendBreak(id: string): void {
    this.#entry(id).device.sendBreak?.();
  }

  ringbuf(id: string): RingbufChardev {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Device '${id}' not found`);
    if (entry.device instanceof RingbufChardev) return entry.device;
    throw new QmpError(`${id} is not a ringbuf device`);
  }

  /** What each one is made of. */
  kinds(): readonly { readonly id: string; readonly kind: ChardevBackend['type'] }[] {
    return [...this.#byId].map(([id, { kind }]) => ({ id, kind }));
  }

  list(): Qapi<'ChardevInfo'>[] {
    return [...this.#byId].map(([label, entry]) => ({
      label,
      filename: entry.device.filename,
      'frontend-open': isOpen(entry),
    }));
  }

  closeAll(): void {
    for (const entry of this.#byId.values()) close(entry);
    this.#byId.clear();
  }

  async #open(backend: ChardevBackend): Promise<{ device: Chardev; log: CharLog | undefined }> {
    const { logfile, logappend = false } = backend.data;
    const stdio =
      backend.type === 'stdio' && [...this.#byId.values()].some(({ device }) => device.filename === 'stdio');
    if (stdio) throw new ChardevFailure('cannot use stdio by multiple character devices');
    let log: CharLog | undefined;
    try {
      log = logfile === undefined ? undefined : new CharLog(logfile, logappend);
      return { device: await openChardev(backend, this.#world), log };
    } catch (error) {
      log?.close();
      const told = qmpError(error);
      throw told ? new ChardevFailure(told.message, told.errorClass, error) : error;
    }
  }

  #entry(id: string): Entry {
    const entry = this.#byId.get(id);
    if (entry) return entry;
    throw new QmpError(`Chardev '${id}' not found`);
  }

  /** What a mux may be put on. */
  #free(id: string): Entry {
    const entry = this.#byId.get(id);
    if (!entry) throw new ChardevFailure(`mux: base chardev ${id} not found`);
    assertFree(id, entry);
    return entry;
  }

  #give(entry: Entry, frontend: CharFrontend): void {
    entry.users++;
    entry.device.attach(entry.log?.of(frontend) ?? frontend);
  }
}

/** Somebody uses it, if only through what is on top of it. */
function isOpen({ mux, users }: Entry): boolean {
  return mux ? isOpen(mux) : users > 0;
}

function assertFree(id: string, { device, users }: Entry): void {
  if (users >= (device.frontendsMax ?? 1)) throw new ChardevFailure(`Device '${id}' is in use`);
}

function told({ pty }: Chardev): Qapi<'ChardevReturn'> {
  return pty === undefined ? {} : { pty };
}

function close({ device, log }: Entry): void {
  device.close();
  log?.close();
}
