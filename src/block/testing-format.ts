/** For tests: the smallest format. A table in memory says where each cluster is in the file; new ones go to its end. */
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import { alignUp, type Bytes, type Offset } from '../base/units.ts';
import type {
  Child,
  Driver,
  DriverNode,
  Mapping,
  MapReason,
  MaybePromise,
  OpenContext,
  Reservation,
} from './driver.ts';

export const CLUSTER = 4096;

/** Where a cluster is; a number is an offset in the file. */
type Place = number | 'zero' | 'opaque';

export class TableNode implements DriverNode {
  length: Bytes;
  readonly file: Child;
  readonly table = new Map<number, Place>();
  readonly context: OpenContext;
  /** Clusters that are being allocated: the next write of them waits. */
  readonly allocating = new Map<number, Gate>();
  /** `map` answers later, once this is open. */
  slow: Gate | undefined;
  maps = 0;
  commits = 0;
  failCommit = 0;
  drains: string[] = [];
  busy = false;
  next: Offset;

  constructor(context: OpenContext, file: Child, length: Bytes) {
    this.context = context;
    this.file = file;
    this.length = length;
    this.next = alignUp(file.length, CLUSTER);
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): MaybePromise<void> {
    this.maps++;
    if (this.slow) return this.slow.promise.then(() => this.#fill(at, want, why, out));
    this.#fill(at, want, why, out);
    return undefined;
  }

  #fill(at: Offset, want: Bytes, _why: MapReason, out: Mapping): void {
    const inside = at % CLUSTER;
    const length = Math.min(want, CLUSTER - inside);
    const place = this.table.get(Math.floor(at / CLUSTER));
    if (typeof place === 'number') out.data(length, this.file, place + inside);
    else out.other(place ?? 'absent', length);
  }

  async reserve(at: Offset, want: Bytes): Promise<Reservation> {
    const cluster = Math.floor(at / CLUSTER);
    while (this.allocating.has(cluster)) await this.allocating.get(cluster)!.promise;
    const head = at % CLUSTER;
    const length = Math.min(want, CLUSTER - head);
    const place = this.table.get(cluster);
    if (typeof place === 'number') return this.#room(this.file, place + head, length, 0, 0);
    const gate = new Gate();
    this.allocating.set(cluster, gate);
    const host = this.next;
    this.next += CLUSTER;
    const room = this.#room(this.file, host + head, length, head, CLUSTER - head - length);
    return {
      ...room,
      commit: () => {
        this.commits++;
        if (this.failCommit !== 0) throw new BlockError(this.failCommit, 'Could not commit: scripted');
        this.table.set(cluster, host);
      },
      [Symbol.asyncDispose]: async () => {
        this.allocating.delete(cluster);
        gate.open();
      },
    };
  }

  #room(child: Child, at: Offset, length: Bytes, head: Bytes, tail: Bytes): Reservation {
    return { child, at, length, head, tail, commit: () => undefined, [Symbol.asyncDispose]: async () => undefined };
  }

  /** Opaque clusters hold their own number in every byte. */
  preadv(at: Offset, iov: Iov): void {
    iov.fill(Math.floor(at / CLUSTER) & 0xff);
  }

  drainBegin(): void {
    this.drains.push('begin');
  }

  drainEnd(): void {
    this.drains.push('end');
  }

  drainBusy(): boolean {
    return this.busy;
  }
}

/** The nodes that were opened, by node-name: for tests to look inside. */
export const tables = new Map<string, TableNode>();

export const tableDriver: Driver<{ size: Bytes }> = {
  name: 'table',
  role: 'format',
  children: { file: 'primary', backing: 'cow' },
  options: { size: { type: 'size', required: true, help: 'size' } },
  async open(context, options) {
    const file = await context.openChild('file', 'primary');
    if (!file) throw new BlockError(Errno.EINVAL, 'Could not open a table node: no file');
    await context.openChild('backing', 'cow');
    const node = new TableNode(context, file, options.size);
    tables.set(context.nodeName, node);
    return node;
  },
};
