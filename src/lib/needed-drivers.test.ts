import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRegistered, registeredDrivers } from '../block/registry.ts';
import { builtinDrivers } from './builtin-drivers.ts';
import { DRIVER_NAMES, needDrivers } from './needed-drivers.ts';

test('a tree gets the drivers that it names, at any depth, and no others', async () => {
  await needDrivers({ driver: 'raw', file: { driver: 'file' } });
  assert.deepEqual([isRegistered('raw'), isRegistered('file'), isRegistered('qcow2')], [true, true, false]);
  await needDrivers({ driver: 'nosuch', backing: null }, 'null-aio');
  assert.ok(isRegistered('null-aio'));
});

test('every driver that comes along can be had by its name', async () => {
  await needDrivers({}, ...DRIVER_NAMES);
  const before = registeredDrivers().length;
  builtinDrivers();
  assert.equal(registeredDrivers().length, before);
});
