/** The services of one kind that run in an IOThread, by number. */
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockBackend } from '../block/backend.ts';

/** Services of a kind in one thread at a time. */
const MAX_SERVICES = 256;

/** Somebody who shows disks to clients, and goes on with them when they move to another thread. */
export interface DiskServer {
  /** True when it shows `blk`. */
  serves(blk: BlockBackend): boolean;
  /** What shows `from` goes on with `to`. */
  rehome(from: BlockBackend, to: BlockBackend): void;
}

export class ServiceTable<S extends DiskServer> implements DiskServer {
  readonly #kind: string;
  readonly #newId: () => number;
  readonly #servers = new Map<number, S>();

  /** `kind`: for messages. `newId`: numbers that no other service of the thread has. */
  constructor(kind: string, newId: () => number) {
    this.#kind = kind;
    this.#newId = newId;
  }

  get count(): number {
    return this.#servers.size;
  }

  /** The number of the next one. Throws EMFILE where there are too many. */
  reserve(): number {
    if (this.#servers.size < MAX_SERVICES) return this.#newId();
    throw new BlockError(Errno.EMFILE, `Could not serve: ${MAX_SERVICES} ${this.#kind} services run in this IOThread`);
  }

  set(service: number, server: S): void {
    this.#servers.set(service, server);
  }

  /** Throws EBADF for a number that is none. */
  get(service: number): S {
    const server = this.#servers.get(service);
    if (!server) throw new BlockError(Errno.EBADF, `Could not use ${this.#kind} service ${service}: it does not run`);
    return server;
  }

  delete(service: number): void {
    this.#servers.delete(service);
  }

  /** Stops each of them with `stop`. */
  async stopAll(stop: (service: number) => Promise<unknown>): Promise<void> {
    await Promise.all([...this.#servers.keys()].map(stop));
  }

  serves(blk: BlockBackend): boolean {
    return [...this.#servers.values()].some((server) => server.serves(blk));
  }

  rehome(from: BlockBackend, to: BlockBackend): void {
    for (const server of this.#servers.values()) server.rehome(from, to);
  }
}

/** Throws EROFS where writes are to be shown of a disk that takes none. */
export function assertWritable(blk: BlockBackend, writable: boolean): void {
  if (!writable || !blk.readOnly) return;
  throw new BlockError(Errno.EROFS, `Could not export '${blk.name}' for writing: it is read-only`);
}
