/** Points that requests come to in drivers and in block/, by the names of QAPI's BlkdebugEvent: for tests, which make
 *  requests fail or stop there. Where nobody listens a point costs a look at one field, on slow paths only. */
import type { MaybePromise } from './driver.ts';

export const DEBUG_EVENTS = [
  ...['l1_update', 'l1_grow_alloc_table', 'l1_grow_write_table', 'l1_grow_activate_table', 'l2_load', 'l2_update'],
  ...['l2_update_compressed', 'l2_alloc_cow_read', 'l2_alloc_write', 'read_aio', 'read_backing_aio'],
  ...['read_compressed', 'write_aio', 'write_compressed', 'vmstate_load', 'vmstate_save', 'cow_read', 'cow_write'],
  ...['reftable_load', 'reftable_grow', 'reftable_update', 'refblock_load', 'refblock_update'],
  ...['refblock_update_part', 'refblock_alloc', 'refblock_alloc_hookup', 'refblock_alloc_write'],
  ...['refblock_alloc_write_blocks', 'refblock_alloc_write_table', 'refblock_alloc_switch_table', 'cluster_alloc'],
  ...['cluster_alloc_bytes', 'cluster_free', 'flush_to_os', 'flush_to_disk', 'pwritev_rmw_head'],
  ...['pwritev_rmw_after_head', 'pwritev_rmw_tail', 'pwritev_rmw_after_tail', 'pwritev', 'pwritev_zero'],
  ...['pwritev_done', 'empty_image_prepare', 'l1_shrink_write_table', 'l1_shrink_free_l2_clusters', 'cor_write'],
  ...['cluster_alloc_space', 'none'],
] as const;

export type DebugEvent = (typeof DEBUG_EVENTS)[number];

/** The part of a node that listens, or hands on. A promise: the request waits until somebody lets it go on. */
export type DebugListener = (event: DebugEvent) => MaybePromise<void>;

/** Where requests stop. Tags name breakpoints, and the requests that they have stopped. Home thread. */
export interface Breakpoints {
  /** The next request that comes to the event stops, and takes the breakpoint away. `told` is called then, and when it
   *  goes on. ENOENT where there is no such event. */
  set(event: string, tag: string, told: (what: 'stopped' | 'going on', tag: string) => void): void;
  /** Takes breakpoints away, and lets requests go on. ENOENT where there is no such breakpoint. */
  remove(tag: string): void;
  /** Lets the request go on that was stopped last. ENOENT where there is none. */
  resume(tag: string): void;
  /** Lets all go on. */
  resumeAll(): void;
  /** Resolves when a request is stopped. */
  stopped(tag: string): Promise<void>;
}
