/** Metadata contexts: which ones an export has, and which of them a query means. */
import { ALLOCATION_DEPTH, BASE_ALLOCATION } from '../../proto/nbd/constants.ts';

/** The contexts that a client has chosen, by the ids that its block-status replies carry. */
export interface ActiveContexts {
  readonly baseAllocation?: number;
  readonly allocationDepth?: number;
}

export const NO_CONTEXTS: ActiveContexts = Object.freeze({});

const BASE_ALLOCATION_ID = 1;
const ALLOCATION_DEPTH_ID = 2;

export interface ContextEntry {
  readonly name: string;
  readonly id: number;
}

/**
 * What `queries` mean for an export, in a fixed order and without repeats; undefined when a query has no namespace.
 * A list takes no query as "all", and `base:` or `qemu:` as "all of these"; a choice takes full names only. A query
 * that means nothing here is no error.
 */
export function selectContexts(
  queries: readonly string[],
  listing: boolean,
  allocationDepth: boolean,
): readonly ContextEntry[] | undefined {
  if (queries.some((query) => !query.includes(':'))) return undefined;
  const known: ContextEntry[] = [{ name: BASE_ALLOCATION, id: BASE_ALLOCATION_ID }];
  if (allocationDepth) known.push({ name: ALLOCATION_DEPTH, id: ALLOCATION_DEPTH_ID });
  if (listing && queries.length === 0) return known;
  return known.filter(({ name }) => {
    const namespace = name.slice(0, name.indexOf(':') + 1);
    return queries.includes(name) || (listing && queries.includes(namespace));
  });
}

export function activeContexts(entries: readonly ContextEntry[]): ActiveContexts {
  const ids = new Set(entries.map((entry) => entry.id));
  return {
    ...(ids.has(BASE_ALLOCATION_ID) && { baseAllocation: BASE_ALLOCATION_ID }),
    ...(ids.has(ALLOCATION_DEPTH_ID) && { allocationDepth: ALLOCATION_DEPTH_ID }),
  };
}
