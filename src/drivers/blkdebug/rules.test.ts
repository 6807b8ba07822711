import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEBUG_EVENTS } from '../../block/driver.ts';
import { parseConfig } from './config.ts';
import { Rules } from './rules.ts';

test('there are the 48 events of QAPI, each once', () => {
  assert.equal(new Set(DEBUG_EVENTS).size, 48);
  assert.equal(DEBUG_EVENTS.length, 48);
});

test('a rule is active from its event until others take its place', () => {
  const rules = new Rules(
    [
      { event: 'read_aio', errno: 5 },
      { event: 'write_aio', errno: 28, iotype: 'write' },
    ],
    [],
  );
  assert.equal(rules.errorOf('read', 0, 512), 0);
  rules.reach('read_aio');
  rules.reach('l2_load');
  assert.equal(rules.errorOf('read', 0, 512), 5);
  assert.equal(rules.errorOf('flush', 0, 0), 5);
  assert.equal(rules.errorOf('block-status', 0, 512), 0);
  rules.reach('write_aio');
  assert.equal(rules.errorOf('read', 0, 512), 0);
  assert.equal(rules.errorOf('write', 0, 512), 28);
});

test('of several rules the first that is for a request counts; once is once for each', () => {
  const rules = new Rules(
    [
      { event: 'none', errno: 1, sector: 2, once: true },
      { event: 'none', errno: 2, once: true },
      { event: 'none', errno: 0 },
    ],
    [],
  );
  rules.reach('none');
  assert.equal(rules.errorOf('read', 0, 1024), 2);
  assert.equal(rules.errorOf('read', 0, 1024), 0);
  assert.equal(rules.errorOf('write', 1000, 100), 1);
  assert.equal(rules.errorOf('write', 1000, 100), 0);
  // Not with its event, either.
  rules.reach('none');
  assert.equal(rules.errorOf('read', 0, 1024), 0);
});

test('a flush is at no sector', () => {
  const rules = new Rules([{ event: 'none', sector: 0 }], []);
  rules.reach('none');
  assert.equal(rules.errorOf('flush', 0, 0), 0);
  assert.equal(rules.errorOf('read', 511, 1), 0);
  assert.equal(rules.errorOf('read', 0, 1), 5);
});

test('states begin at 1, and rules of other states do nothing', () => {
  const rules = new Rules(
    [{ event: 'write_aio', state: 2 }],
    [
      { event: 'write_aio', state: 1, new_state: 2 },
      { event: 'write_aio', state: 2, new_state: 3 },
      { event: 'write_aio', state: 2, new_state: 4 },
    ],
  );
  rules.reach('write_aio');
  assert.equal(rules.state, 2);
  assert.equal(rules.errorOf('write', 0, 1), 0);
  rules.reach('write_aio');
  assert.equal(rules.state, 3);
  assert.equal(rules.errorOf('write', 0, 1), 5);
});

const SECTIONS = {
  'inject-error': {
    event: { type: 'enum', values: ['l2_update'], help: '' },
    errno: { type: 'number', help: '' },
    once: { type: 'boolean', help: '' },
  },
  'set-state': { state: { type: 'number', help: '' } },
} as const;

test('a file of rules has sections and values in quotes', () => {
  const text = `
    # what fails
[inject-error]
event = "l2_update"
  errno="28"
[set-state "a"]
[inject-error]
once = "on"
`;
  const found = parseConfig(text, 'x', SECTIONS);
  assert.deepEqual(found.get('inject-error'), [{ event: 'l2_update', errno: 28 }, { once: true }]);
  assert.deepEqual(found.get('set-state'), [{}]);
});

test('what is wrong in a file of rules is refused with its line', () => {
  for (const [text, message] of [
    ['[foo]', /line 1: there is no section 'foo'/],
    ['[__proto__]', /no section '__proto__'/],
    ['\nerrno = "5"', /line 2: it belongs to no section/],
    ['[inject-error]\nerrno = 5', /line 2: it is neither/],
    ['[inject-error', /line 1: it is neither/],
    ['[inject-error]\nerrno = "x"', /line 2: 'errno' is 'x', not a number/],
    ['[inject-error]\nonce = "yes"', /'once' is 'yes', not on or off/],
    ['[inject-error]\nevent = "foo"', /'event' is 'foo', not one of l2_update/],
    ['[inject-error]\nfoo = "1"', /no option 'foo'/],
  ] as const) {
    assert.throws(() => parseConfig(text, 'x', SECTIONS), { code: 'EINVAL', message });
  }
});
