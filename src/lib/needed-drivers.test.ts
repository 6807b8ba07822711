import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRegistered, registeredDrivers } from '../block/registry.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import { DRIVER_NAMES } from './needed-drivers.ts';

test('the drivers of an IOThread, and those that are loaded one by one, are the same', () => {
  builtinDrivers();
  for (const name of DRIVER_NAMES) assert.ok(isRegistered(name), `${name} is not in every IOThread`);
  for (const { name } of registeredDrivers()) assert.ok(DRIVER_NAMES.includes(name), `${name} is in IOThreads only`);
});
