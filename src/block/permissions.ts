/**
 * Permissions (SEMANTICS B1, B2): what each user of a node needs, and what it lets others do. A change is worked out
 * for the whole graph below first, then the drivers agree (file locks), then it takes effect; or nothing
 * changes at all.
 */
import { Gate } from '../aio/op.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { BlockChild } from './child.ts';
import { PERM_ALL, Perm } from './driver.ts';
import type { BlockNode, NodeParent } from './node.ts';

const NAMES: readonly (readonly [number, string])[] = [
  [Perm.CONSISTENT_READ, 'consistent read'],
  [Perm.WRITE, 'write'],
  [Perm.WRITE_UNCHANGED, 'write unchanged'],
  [Perm.RESIZE, 'resize'],
];

/** What a node that is read-only gives nobody. */
const WRITES = Perm.WRITE | Perm.WRITE_UNCHANGED | Perm.RESIZE;

/** 'write, resize' for the bits of both. */
export function permNames(perm: number): string {
  return NAMES.filter(([bit]) => (perm & bit) !== 0)
    .map(([, name]) => name)
    .join(', ');
}

let changing: Gate | null = null;

/** Graph changes of this thread, one after the other: for the parts of them that wait. */
export async function graphSection(): Promise<Disposable> {
  while (changing !== null) await changing.promise;
  const gate = new Gate();
  changing = gate;
  return {
    [Symbol.dispose]() {
      changing = null;
      gate.open();
    },
  };
}

interface Wish {
  perm: number;
  shared: number;
}

/** Of who uses nothing. */
export const AT_REST = { perm: 0, shared: PERM_ALL } as const;

/** A change that is being worked out. Not given to anybody until {@link apply} has resolved. */
export class PermChange {
  readonly #wishes = new Map<NodeParent, Wish>();
  readonly #added = new Map<BlockNode, NodeParent[]>();
  readonly #removed = new Map<BlockNode, Set<NodeParent>>();
  readonly #roots = new Set<BlockNode>();

  /** `parent` wants other permissions on `node`. */
  set(parent: NodeParent, node: BlockNode, perm: number, shared: number): this {
    this.#wishes.set(parent, { perm, shared });
    this.#roots.add(node);
    return this;
  }

  /** Counts `parent` as a user of `node` although it is not attached yet. */
  add(parent: NodeParent, node: BlockNode): this {
    this.#added.set(node, [...(this.#added.get(node) ?? []), parent]);
    return this;
  }

  /** Leaves `parent` out of the users of `node` although it is attached still. With `add` and `set` for another node:
   *  it moves there. */
  remove(parent: NodeParent, node: BlockNode): this {
    this.#removed.set(node, (this.#removed.get(node) ?? new Set()).add(parent));
    this.#roots.add(node);
    return this;
  }

  /** The node itself has become read-only, or writable: what it needs below is worked out again. */
  refresh(node: BlockNode): this {
    this.#roots.add(node);
    return this;
  }

  /** All or nothing. Call inside a graph section. */
  async apply(): Promise<void> {
    const order = this.#topological();
    const before = order.map(permissionsOf);
    const after = order.map((node) => this.#check(node));
    const agreed: number[] = [];
    try {
      for (let i = 0; i < order.length; i++) {
        if (before[i]!.perm === after[i]!.perm && before[i]!.shared === after[i]!.shared) continue;
        // Reported before the call: a driver that fails half-way is told to go back, too.
        agreed.push(i);
        await order[i]!.impl.permissions?.(after[i]!.perm, after[i]!.shared);
      }
    } catch (error) {
      for (const i of agreed.reverse()) await goBack(order[i]!, before[i]!);
      throw error;
    }
    for (const [parent, wish] of this.#wishes) {
      parent.perm = wish.perm;
      parent.shared = wish.shared;
    }
  }

  /** The nodes from the roots down, every parent before its children. */
  #topological(): BlockNode[] {
    const seen = new Set<BlockNode>();
    const order: BlockNode[] = [];
    const visit = (node: BlockNode): void => {
      if (seen.has(node)) return;
      seen.add(node);
      for (const child of node.children) visit(child.node);
      order.push(node);
    };
    for (const root of this.#roots) visit(root);
    return order.reverse();
  }

  /** Checks one node's users against each other and hands their needs on to its children. */
  #check(node: BlockNode): Wish {
    // New users first, so that a refusal is about them.
    const users = [...(this.#added.get(node) ?? []), ...node.parents].filter((user) => !this.#isRemoved(user, node));
    for (const user of users) {
      if (node.inactive && this.#wishOf(user).perm !== 0) throw refusal(node, user, 'it is inactive');
      if (node.readOnly && (this.#wishOf(user).perm & WRITES) !== 0) {
        throw refusal(node, user, 'it is read-only');
      }
      for (const other of users) if (other !== user) this.#checkPair(node, user, other);
    }
    const total = cumulative(users, (user) => this.#wishOf(user));
    const used = users.some(usesDisk);
    for (const child of node.children) {
      if (!this.#isRemoved(child, child.node)) this.#wishes.set(child, childPermissions(child, total, used));
    }
    return total;
  }

  /** The message is about the one whose wishes are new. */
  #checkPair(node: BlockNode, needs: NodeParent, shares: NodeParent): void {
    if (needs.allies?.has(shares) || shares.allies?.has(needs)) return;
    const refused = permNames(this.#wishOf(needs).perm & ~this.#wishOf(shares).shared);
    if (refused === '') return;
    if (this.#wishes.has(needs)) throw refusal(node, needs, `${shares.describe} does not share '${refused}'`);
    throw refusal(node, shares, `it would not share '${refused}', which ${needs.describe} uses`);
  }

  #isRemoved(user: NodeParent, node: BlockNode): boolean {
    return this.#removed.get(node)?.has(user) ?? false;
  }

  #wishOf(user: NodeParent): Wish {
    return this.#wishes.get(user) ?? user;
  }
}

function refusal(node: BlockNode, user: NodeParent, why: string): BlockError {
  return new BlockError(Errno.EPERM, `Could not use node '${node.name}' for ${user.describe}: ${why}`, {
    where: { node: node.name },
  });
}

/** What matters is why the change failed; a driver that cannot go back keeps what it has. */
async function goBack(node: BlockNode, before: Wish): Promise<void> {
  try {
    await node.impl.permissions?.(before.perm, before.shared);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

/** What all users of a node need together, and what each of them lets others do. */
export function permissionsOf(node: BlockNode): Wish {
  return cumulative(node.parents, parentWish);
}

function parentWish(parent: NodeParent): Wish {
  return parent;
}

function cumulative(users: readonly NodeParent[], wishOf: (user: NodeParent) => Wish): Wish {
  let perm = 0;
  let shared = PERM_ALL;
  for (const user of users) {
    const wish = wishOf(user);
    perm |= wish.perm;
    shared &= wish.shared;
  }
  return { perm, shared };
}

/** Who reads what a filter has kept does not use the disk that it shows. */
export function usesDisk(user: NodeParent): boolean {
  return (user as Partial<BlockChild>).role !== 'snapshot';
}

/** What a node needs of a child when its own users need `total`. `used`: somebody uses its disk. */
export function childPermissions(child: BlockChild, total: Wish, used: boolean): Wish {
  const { parent, role } = child;
  if (parent.inactive) return AT_REST;
  if (role === 'filtered') {
    const copies = parent.driver.copiesUp === true ? Perm.WRITE_UNCHANGED : 0;
    const claims = parent.driver.claims?.(parent.common, used);
    const perm = (total.perm & ~(parent.driver.spares ?? 0)) | copies | (claims?.perm ?? 0);
    return { perm, shared: total.shared & ~(claims?.unshared ?? 0) };
  }
  if (role === 'snapshot') return AT_REST;
  if (role === 'target') return { perm: Perm.CONSISTENT_READ | Perm.WRITE, shared: PERM_ALL };
  if (role === 'cow') {
    const writable = (total.shared & Perm.WRITE) !== 0 ? Perm.WRITE | Perm.RESIZE : 0;
    return {
      perm: total.perm & Perm.CONSISTENT_READ,
      shared: Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED | writable,
    };
  }
  let { perm, shared } = total;
  if ((perm & Perm.WRITE) !== 0 && role !== 'data') perm |= Perm.RESIZE;
  if (role !== 'data') {
    // The driver reads its metadata at any time, and writes it at any time where it may.
    perm |= Perm.CONSISTENT_READ;
    if (!parent.readOnly) perm |= Perm.WRITE | Perm.RESIZE;
    shared &= ~(Perm.WRITE | Perm.RESIZE);
  } else {
    shared &= ~Perm.RESIZE;
  }
  if (parent.common['force-share'] === true) shared = PERM_ALL;
  return { perm, shared };
}
