/**
 * What a driver of your own is written with (`blockplane/driver`). Its module is given to IOThread.start(), its default
 * export is the driver:
 *
 * ```ts
 * import { BlockError, type Driver, type DriverNode, Errno, type Iov } from 'blockplane/driver';
 *
 * export default { name: 'mine', role: 'protocol', options: {}, open: (context, options) => new MyNode() } as Driver;
 * ```
 *
 * ```ts
 * const thread = await IOThread.start({ drivers: [new URL('./mine.js', import.meta.url)] });
 * const disk = await open(customNode({ driver: 'mine' }), { iothread: thread });
 * ```
 *
 * A driver that waits for anything but this package's own promises (a timer of node's, fetch, ...) calls
 * {@link markResumed} after each such wait, or opens a {@link Gate} when it is over: the loop sleeps otherwise with
 * work at hand.
 */
export { AioOp, Gate, markResumed, spawn, WaitOp } from '../aio/op.ts';
export { BlockError, Errno, type ErrnoName, type ErrorPlace } from '../base/errors.ts';
export { Iov, type Memory } from '../base/memory.ts';
export * from '../block/driver.ts';
