import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { BlockError } from '../base/errors.ts';
import type { Driver } from './driver.ts';
import { registerDriver } from './registry.ts';
import { parseTextOptions, typedOptions } from './text-options.ts';

const driver: Driver = {
  name: 'texted',
  role: 'format',
  children: { file: 'primary' },
  options: {
    size: { type: 'size', help: '' },
    seconds: { type: 'number', help: '' },
    wide: { type: 'boolean', help: '' },
    name: { type: 'string', help: '' },
    'key.data': { type: 'string', help: '' },
  },
  open: () => ({ length: 0 }),
};
before(() => registerDriver(driver));

function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

test('dots nest, a double comma is one, and an equals sign belongs to the value', () => {
  const tree = parseTextOptions('driver=texted,file.driver=x,file.file.filename=a,,b=c,name=');
  assert.deepEqual(plain(tree), {
    driver: 'texted',
    file: { driver: 'x', file: { filename: 'a,b=c' } },
    name: '',
  });
});

test('values take the types that the drivers say', () => {
  const text = 'driver=texted,size=1.5K,seconds=600,wide=on,name=12,cache.direct=off,file.driver=texted,file.size=4M';
  assert.deepEqual(plain(typedOptions(parseTextOptions(text))), {
    ...{ driver: 'texted', size: 1536, seconds: 600, wide: true, name: '12', cache: { direct: false } },
    file: { driver: 'texted', size: 4 * 1024 * 1024 },
  });
});

test("a driver's own option with a dot is no child", () => {
  assert.deepEqual(plain(typedOptions(parseTextOptions('driver=texted,key.data=x'))), {
    driver: 'texted',
    'key.data': 'x',
  });
  // One that nobody knows is kept, so that the node refuses it by name.
  assert.deepEqual(plain(typedOptions(parseTextOptions('driver=texted,key.data=x,key.other=y'))), {
    driver: 'texted',
    'key.data': 'x',
    'key.other': 'y',
  });
  assert.throws(
    () => typedOptions(parseTextOptions('driver=texted,key.data.more=x')),
    /unknown option 'key.data.more'/,
  );
});

test('each mistake is one error that names the option', () => {
  const wrong = [
    ['driver', /'driver' is not of the form/],
    ['=x', /not of the form/],
    ['driver=texted,size=1X', /'size' is '1X'/],
    ['driver=texted,wide=maybe', /'wide' is 'maybe'/],
    ['driver=texted,seconds=', /'seconds' is ''/],
    ['driver=texted,name=a,name=b', /'name' is given twice/],
    ['driver=texted,name=a,name.x=b', /'name' is both/],
    ['driver=texted,a..b=1', /'a..b' is not a name/],
    ['size=1', /without 'driver'/],
    ['driver=texted,file.filename=x', /without 'driver'/],
    [`driver=texted,${'a.'.repeat(2000)}b=1`, /nested too deeply/],
  ] as const;
  for (const [text, message] of wrong) {
    assert.throws(() => typedOptions(parseTextOptions(text)), { name: BlockError.name, message }, text.slice(0, 60));
  }
});

test('names that objects come with are names like any other', () => {
  const tree = parseTextOptions('driver=texted,__proto__.x=1,constructor=2');
  assert.equal(({} as { x?: unknown }).x, undefined);
  assert.equal(tree.constructor, '2');
});
