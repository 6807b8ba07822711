import { BlockError, Errno } from '../base/errors.ts';
import type { SnapshotInfo } from '../block/driver.ts';
import type { SnapshotMessage } from './messages.ts';

type Act = (action: SnapshotMessage['action'], which?: string) => Promise<readonly SnapshotInfo[]>;

/**
 * Snapshots inside an image. Requests wait while one is made, applied or deleted. `which` is an id or a name; an id
 * goes first. ENOENT where there is none.
 */
export class DiskSnapshots {
  readonly #act: Act;

  /** @internal Use Disk.snapshots. */
  constructor(act: Act) {
    this.#act = act;
  }

  list(): Promise<readonly SnapshotInfo[]> {
    return this.#act('list');
  }

  async create(name: string): Promise<SnapshotInfo> {
    const [made] = await this.#act('create', named(name));
    return made!;
  }

  /** The disk becomes what it was then, in size too; the snapshot stays. */
  async apply(which: string): Promise<void> {
    await this.#act('apply', named(which));
  }

  async delete(which: string): Promise<void> {
    await this.#act('delete', named(which));
  }
}

function named(which: string): string {
  if (typeof which === 'string' && which !== '' && !which.includes('\0')) return which;
  throw new BlockError(Errno.EINVAL, 'snapshot: expected a name or an id');
}
