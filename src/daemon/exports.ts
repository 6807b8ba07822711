/** Block exports of a daemon, by their ids. */
import { BlockError, Errno } from '../base/errors.ts';
import { everyStep } from '../base/every-step.ts';
import { type Bytes, isPowerOfTwo, MiB } from '../base/units.ts';
import type { Disk } from '../lib/disk.ts';
import type { IOThread } from '../lib/iothread.ts';
import { serveVhostUser } from '../lib/vhost-user.ts';
import { QmpError, qmpError } from '../qmp/errors.ts';
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Bitmaps } from './bitmaps.ts';
import { listenFailure, targetOf } from './listening.ts';
import type { NbdListeners } from './nbd-listeners.ts';
import type { Nodes } from './nodes.ts';

type ExportOptions = Qapi<'BlockExportOptions'>;
type NbdOptions = Extract<ExportOptions, { readonly type: 'nbd' }>;
type VhostUserOptions = Extract<ExportOptions, { readonly type: 'vhost-user-blk' }>;
export type ExportMode = Qapi<'BlockExportRemoveMode'>;

const EXPORTS_MAX = 1024;
const SECTOR: Bytes = 512;
/** Bytes of UTF-8 that the protocol has room for. */
const NBD_STRING_MAX = 4096;

interface Entry {
  readonly type: ExportOptions['type'];
  readonly node: string;
  readonly disk: Disk;
  readonly take: (mode: ExportMode) => Promise<void>;
  shuttingDown: boolean;
}

export class Exports {
  readonly #nodes: Nodes;
  readonly #bitmaps: Bitmaps;
  readonly #nbd: NbdListeners;
  readonly #iothread: (id: string) => IOThread | undefined;
  readonly #onDeleted: (id: string) => void;
  readonly #byId = new Map<string, Entry>();

  constructor(
    nodes: Nodes,
    bitmaps: Bitmaps,
    nbd: NbdListeners,
    iothread: (id: string) => IOThread | undefined,
    onDeleted: (id: string) => void,
  ) {
    this.#nodes = nodes;
    this.#bitmaps = bitmaps;
    this.#iothread = iothread;
    this.#nbd = nbd;
    this.#onDeleted = onDeleted;
  }

  async add(options: ExportOptions): Promise<void> {
    const { id, type, 'node-name': node, writable = false, writethrough = false } = options;
    const { 'fixed-iothread': fixed = false, 'allow-inactive': allowInactive = false } = options;
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new QmpError('Invalid block export id');
    if (this.#byId.has(id)) throw new QmpError(`Block export id '${id}' is already in use`);
    if (this.#byId.size >= EXPORTS_MAX) throw new QmpError(`There are ${EXPORTS_MAX} block exports already`);
    this.#nodes.lookup(node);
    if (allowInactive) checkInactive(options);
    if (options.type === 'nbd') this.#checkNbd(options);
    await this.#place(options);
    const how = { name: node, owner: `export '${id}'`, writable, writethrough, fixed, allowInactive };
    const disk = await this.#nodes.disk(node, how);
    try {
      const take = options.type === 'nbd' ? await this.#addNbd(options, disk) : await vhostUser(options, disk);
      this.#byId.set(id, { type, node, disk, take, shuttingDown: false });
    } catch (error) {
      await disk.close();
      throw error;
    }
  }

  /** Has the node in the thread that is asked for; where it cannot go there it stays, unless that is not wanted. */
  async #place({ iothread, 'node-name': node, 'fixed-iothread': fixed = false }: ExportOptions): Promise<void> {
    if (iothread === undefined) return;
    const thread = this.#iothread(iothread);
    if (!thread) throw new QmpError(`iothread "${iothread}" not found`);
    try {
      await this.#nodes.move(node, thread);
    } catch (error) {
      if (fixed || !qmpError(error)) throw error;
    }
  }

  /** `safe` is refused while a client uses it. */
  async delete(id: string, mode: ExportMode): Promise<void> {
    const entry = this.#byId.get(id);
    if (!entry) throw new QmpError(`Export '${id}' is not found`);
    if (entry.shuttingDown) {
      if (mode === 'safe') throw new QmpError(`export '${id}' is already shutting down`);
      return;
    }
    entry.shuttingDown = true;
    try {
      await entry.take(mode);
    } catch (error) {
      entry.shuttingDown = false;
      if (error instanceof BlockError && error.errno === Errno.EBUSY) {
        throw new QmpError(`export '${id}' still in use`, 'GenericError', error);
      }
      throw error;
    }
    this.#byId.delete(id);
    try {
      await entry.disk.close();
    } finally {
      this.#onDeleted(id);
    }
  }

  /** Takes all of them away, or all of one type. */
  async deleteAll(type?: ExportOptions['type']): Promise<void> {
    const ids = [...this.#byId].filter(([, entry]) => type === undefined || entry.type === type).map(([id]) => id);
    await everyStep(...ids.map((id) => () => this.delete(id, 'hard')));
  }

  /** The id of the NBD export that clients know by that name. */
  nbdId(name: string): string | undefined {
    return [...this.#byId].find(([id, { type }]) => type === 'nbd' && id === name)?.[0];
  }

  list(): Qapi<'BlockExportInfo'>[] {
    return [...this.#byId].map(([id, { type, node, shuttingDown }]) => ({
      id,
      type,
      'node-name': node,
      'shutting-down': shuttingDown,
    }));
  }

  #checkNbd(options: NbdOptions): void {
    this.#nbd.assertRunning();
    const { 'node-name': node, name = node, description = '' } = options;
    const bytes = (text: string): number => new TextEncoder().encode(text).length;
    if (bytes(name) > NBD_STRING_MAX) throw new QmpError(`export name '${name.slice(0, 64)}...' too long`);
    if (bytes(description) > NBD_STRING_MAX) {
      throw new QmpError(`description '${description.slice(0, 64)}...' too long`);
    }
    if (this.#nbd.has(name)) throw new QmpError(`NBD server already has export named '${name}'`);
  }

  async #addNbd(options: NbdOptions, disk: Disk): Promise<Entry['take']> {
    const { 'node-name': node, name = node, description, writable = false, bitmaps = [] } = options;
    for (const bitmap of bitmaps) if (typeof bitmap !== 'string') await this.#bitmaps.assertBeside(node, bitmap);
    await this.#nbd.add(name, {
      disk,
      exportName: name,
      description,
      readOnly: !writable,
      bitmaps,
      allocationDepth: options['allocation-depth'] ?? false,
    });
    return (mode) => this.#nbd.remove(name, mode);
  }
}

/** Bitmaps are the image's: while another process has it, there is nothing to show of them. */
function checkInactive(options: ExportOptions): void {
  if (options.type !== 'nbd') {
    throw new QmpError(`Exports of type '${options.type}' do not support 'allow-inactive'`);
  }
  if ((options.bitmaps ?? []).length > 0) throw new QmpError("'bitmaps' and 'allow-inactive' exclude each other");
}

async function vhostUser(options: VhostUserOptions, disk: Disk): Promise<Entry['take']> {
  const { addr, writable = false, 'num-queues': queues = 1 } = options;
  if (addr.type !== 'unix' && addr.type !== 'fd') {
    throw new QmpError("Only socket address types 'unix' and 'fd' are supported");
  }
  const blockSize = blockSizeOf(options);
  if (queues === 0) throw new QmpError('num-queues must be greater than 0');
  try {
    const service = await serveVhostUser(disk, { ...targetOf(addr), readOnly: !writable, queues, blockSize });
    return () => service.stop();
  } catch (error) {
    throw listenFailure(addr, error);
  }
}

/** What it may be at all; what it can be here is for the device to say. */
function blockSizeOf({ id, 'logical-block-size': size = 0 }: VhostUserOptions): Bytes | undefined {
  if (size === 0) return undefined;
  const what = `Property ${id}.logical-block-size doesn't take value`;
  if (size < SECTOR || size > 2 * MiB) throw new QmpError(`${what} ${size} (minimum: ${SECTOR}, maximum: ${2 * MiB})`);
  if (!isPowerOfTwo(size)) throw new QmpError(`${what} '${size}', it's not a power of 2`);
  return size;
}
