/**
 * What every driver has to hold, as tests to run on a driver of your own (`blockplane/conformance`):
 *
 * ```ts
 * import { test } from 'node:test';
 * import { driverConformance, openImage } from 'blockplane/conformance';
 * import mine from './mine.js';
 *
 * const open = (size: number) => openImage({ driver: 'mine', size }, { drivers: [mine] });
 * driverConformance({ test, name: 'mine', open, writable: true });
 * ```
 */
export { type ConformanceOptions, type ConformanceTarget, driverConformance } from '../block/conformance.ts';
export { type OpenImageOptions, openImage } from './open-image.ts';
