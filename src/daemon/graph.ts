/** The nodes of a daemon, for programs: what its commands do, by methods. */
import type { Qapi } from '../qmp/schema/schema.ts';
import type { Daemon } from './daemon.ts';
import type { NamedNode } from './node-options.ts';

export class Graph {
  readonly #daemon: Daemon;

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  /** Opens a tree. It stays until it is removed. */
  async add(node: NamedNode): Promise<void> {
    await this.#daemon.run('blockdev-add', node);
  }

  /** EBUSY while it is in use. */
  async remove(name: string): Promise<void> {
    await this.#daemon.run('blockdev-del', { 'node-name': name });
  }

  /** Makes all of them what their options say, or none. A child is the name of a node, or all options of the one that
   *  is there, if it was opened with its parent; one that is not mentioned stays as it is. */
  async reopen(...nodes: readonly NamedNode[]): Promise<void> {
    await this.#daemon.run('blockdev-reopen', { options: nodes });
  }

  /** `size`: bytes. */
  async resize(name: string, size: number): Promise<void> {
    await this.#daemon.run('block_resize', { 'node-name': name, size });
  }

  /** Whoever uses `name` uses `overlay` from now on, which has it below. */
  async snapshot(name: string, overlay: string): Promise<void> {
    await this.#daemon.run('blockdev-snapshot', { node: name, overlay });
  }

  /** An inactive node is nobody's: another process may have its image. */
  async setActive(name: string, active: boolean): Promise<void> {
    await this.#daemon.run('blockdev-set-active', { 'node-name': name, active });
  }

  /** What is known of every node. */
  list(): Promise<readonly Qapi<'BlockDeviceInfo'>[]> {
    return this.#daemon.run('query-named-block-nodes', { flat: true });
  }
}
