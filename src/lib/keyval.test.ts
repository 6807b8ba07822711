import assert from 'node:assert/strict';
import { test } from 'node:test';
import { keyval } from './keyval.ts';

test('names with dots make trees, numbers make lists, the last one given counts', () => {
  const tree = keyval('authz-list,id=a,rules.1.match=c,rules.0.match=a,,b,rules.0.match=d=e,id=b', 'qom-type');
  assert.deepEqual(tree, { 'qom-type': 'authz-list', id: 'b', rules: [{ match: 'd=e' }, { match: 'c' }] });
  assert.deepEqual(keyval(''), {});
  assert.deepEqual(keyval('a='), { a: '' });
  assert.deepEqual(keyval('a=x,,y'), { a: 'x,y' });
});

const REFUSED: readonly (readonly [string, RegExp])[] = [
  ['a=1,hush', /^Expected '=' in part 2 of the options$/],
  ['first', /^Expected '=' in part 1/],
  ['=1', /^Invalid parameter ''$/],
  ['a..b=1', /^Invalid parameter 'a\.\.b'$/],
  ['a=1,a.b=2', /^Parameters 'a\.\*' used inconsistently$/],
  ['a.b=1,a=2', /^Parameters 'a\.\*' used inconsistently$/],
  ['a.0=1,a.b=2', /^Parameters 'a\.\*' used inconsistently$/],
  ['a.1=1', /^Parameter 'a\.0' missing$/],
  ['a.0=1,a.2=1', /^Parameter 'a\.1' missing$/],
  [`${'a.'.repeat(65)}b=1`, /^Invalid parameter 'a\.a/],
];

for (const [text, why] of REFUSED) {
  test(`refused: ${text.slice(0, 30)}`, () => {
    assert.throws(() => keyval(text), { code: 'EINVAL', message: why });
  });
}

test('a name that objects come with is a name like others', () => {
  const tree = keyval('__proto__=x,constructor=y');
  assert.equal(Object.getPrototypeOf(tree), Object.prototype);
  assert.deepEqual(Object.entries(tree), [
    ['__proto__', 'x'],
    ['constructor', 'y'],
  ]);
});
