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
 * A driver may wait for anything that Node.js waits for (a timer, fetch, ...). In code that resolves a promise from a
 * callback of this package's, {@link Gate} or {@link markResumed} lets its coroutine go on at once; without, it goes on
 * when the loop next comes by, a millisecond later at most.
 */
export { AioOp, Gate, markResumed, spawn, WaitOp } from '../aio/op.ts';
export { BlockError, Errno, type ErrnoName, type ErrorPlace } from '../base/errors.ts';
export { Iov, type Memory } from '../base/memory.ts';
export * from '../block/driver.ts';
