/** Metadata contexts: which ones an export has, and which of them a query means. */
import { ALLOCATION_DEPTH, BASE_ALLOCATION, DIRTY_BITMAP } from '../../proto/nbd/constants.ts';
import type { NbdExport } from './export-list.ts';

/** The contexts that a client has chosen, by the ids that its block-status replies carry; survives structured clone. */
export interface ActiveContexts {
  readonly baseAllocation?: number;
  readonly allocationDepth?: number;
  /** Not empty; `index`: in the names of the export's bitmaps. */
  readonly bitmaps?: readonly { readonly id: number; readonly index: number }[];
}

export const NO_CONTEXTS: ActiveContexts = Object.freeze({});

const BASE_ALLOCATION_ID = 1;
const ALLOCATION_DEPTH_ID = 2;
/** Of the first bitmap; the others follow. */
const BITMAP_ID = 3;

export interface ContextEntry {
  readonly name: string;
  readonly id: number;
  /** Which one it shows, of a dirty bitmap's. */
  readonly bitmap?: number;
}

function contextsOf({ allocationDepth, bitmaps }: Pick<NbdExport, 'allocationDepth' | 'bitmaps'>): ContextEntry[] {
  const known: ContextEntry[] = [{ name: BASE_ALLOCATION, id: BASE_ALLOCATION_ID }];
  if (allocationDepth) known.push({ name: ALLOCATION_DEPTH, id: ALLOCATION_DEPTH_ID });
  for (const [bitmap, name] of (bitmaps?.names ?? []).entries()) {
    known.push({ name: DIRTY_BITMAP + name, id: BITMAP_ID + bitmap, bitmap });
  }
  return known;
}

/**
 * What `queries` mean for an export, in a fixed order and without repeats; undefined when a query has no namespace.
 * A list takes no query as "all", `base:` or `qemu:` as "all of these", and `qemu:dirty-bitmap:` as "all bitmaps"; a
 * choice takes full names only. A query that means nothing here is no error.
 */
export function selectContexts(
  queries: readonly string[],
  listing: boolean,
  entry: Pick<NbdExport, 'allocationDepth' | 'bitmaps'>,
): readonly ContextEntry[] | undefined {
  if (queries.some((query) => !query.includes(':'))) return undefined;
  const known = contextsOf(entry);
  if (listing && queries.length === 0) return known;
  return known.filter(({ name, bitmap }) => {
    if (queries.includes(name)) return true;
    if (!listing) return false;
    const namespace = name.slice(0, name.indexOf(':') + 1);
    return queries.includes(namespace) || (bitmap !== undefined && queries.includes(DIRTY_BITMAP));
  });
}

export function activeContexts(entries: readonly ContextEntry[]): ActiveContexts {
  const ids = new Set(entries.map((entry) => entry.id));
  const bitmaps = entries.flatMap(({ id, bitmap }) => (bitmap === undefined ? [] : [{ id, index: bitmap }]));
  return {
    ...(ids.has(BASE_ALLOCATION_ID) && { baseAllocation: BASE_ALLOCATION_ID }),
    ...(ids.has(ALLOCATION_DEPTH_ID) && { allocationDepth: ALLOCATION_DEPTH_ID }),
    ...(bitmaps.length > 0 && { bitmaps }),
  };
}

/** How many contexts were chosen. */
export function contextCount({ baseAllocation, allocationDepth, bitmaps }: ActiveContexts): number {
  return Number(baseAllocation !== undefined) + Number(allocationDepth !== undefined) + (bitmaps?.length ?? 0);
}
