/**
 * Image locks (SEMANTICS L7), shared with QEMU: one byte of the file for each permission that is used, one for each
 * that is not shared, both held as OFD read locks. Whoever uses what another holds the "not shared"
 * byte of, has a conflict.
 */
import type { AioFile } from '../../aio/backend.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { PERM_ALL } from '../../block/driver.ts';

const USED = 100;
const NOT_SHARED = 200;
/** By bit number. */
const NAMES = ['consistent read', 'write', 'write unchanged', 'resize'] as const;

export class ImageLocks {
  readonly #file: AioFile;
  #perm = 0;
  #shared = PERM_ALL;
  /** Two nodes use the same open file, and one of them is about to end: nothing is given back. */
  #common: boolean;

  /** `common`: the open file has the locks of another node already, see {@link lend}. */
  constructor(file: AioFile, common = false) {
    this.#file = file;
    this.#common = common;
  }

  /** From here on another node may use the same open file: what is not needed any more stays held until
   *  {@link settle}. */
  lend(): void {
    this.#common = true;
  }

  /** The other node is gone: exactly the locks for what was set last are held afterwards. */
  async settle(): Promise<void> {
    this.#common = false;
    const { perm, shared } = { perm: this.#perm, shared: this.#shared };
    for (let i = 0; i < NAMES.length; i++) {
      const bit = 1 << i;
      await this.#byte(USED + i, undefined, (perm & bit) !== 0);
      await this.#byte(NOT_SHARED + i, undefined, (shared & bit) === 0);
    }
  }

  /** Holds the locks for these permissions, and no others; on a conflict those from before. */
  async set(perm: number, shared: number): Promise<void> {
    const before = { perm: this.#perm, shared: this.#shared };
    try {
      // First all that is held before or after, then the check, so that two that do the same see each other.
      await this.#hold(before.perm | perm, before.shared & shared);
      await this.#check(perm, shared);
    } catch (error) {
      await this.#hold(before.perm, before.shared);
      throw error;
    }
    await this.#hold(perm, shared);
  }

  async #hold(perm: number, shared: number): Promise<void> {
    for (let i = 0; i < NAMES.length; i++) {
      const bit = 1 << i;
      // Noted one by one: a failure half-way must know what is held.
      await this.#byte(USED + i, (this.#perm & bit) !== 0, (perm & bit) !== 0);
      this.#perm = (this.#perm & ~bit) | (perm & bit);
      await this.#byte(NOT_SHARED + i, (this.#shared & bit) === 0, (shared & bit) === 0);
      this.#shared = (this.#shared & ~bit) | (shared & bit);
    }
  }

  /** `had`: undefined where that is not known. */
  async #byte(at: number, had: boolean | undefined, wants: boolean): Promise<void> {
    if (had === wants || (this.#common && !wants)) return;
    if (!(await this.#file.lock(wants ? 'read' : 'none', at, 1))) throw this.#conflict(`lock byte ${at}`);
  }

  async #check(perm: number, shared: number): Promise<void> {
    for (let i = 0; i < NAMES.length; i++) {
      if ((perm & (1 << i)) !== 0 && (await this.#file.testLock('write', NOT_SHARED + i, 1))) {
        throw this.#conflict(`get "${NAMES[i]}" lock`);
      }
    }
    for (let i = 0; i < NAMES.length; i++) {
      if ((shared & (1 << i)) === 0 && (await this.#file.testLock('write', USED + i, 1))) {
        throw this.#conflict(`get shared "${NAMES[i]}" lock`);
      }
    }
  }

  #conflict(what: string): BlockError {
    const { path } = this.#file;
    return new BlockError(Errno.EBUSY, `Could not open '${path}': Failed to ${what}; is another process using it?`, {
      where: { path, op: 'lock' },
    });
  }
}
