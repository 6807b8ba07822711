import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Authorizer, type Authz } from './authz.ts';

const LAPTOP = 'C=GB,O=Example,CN=laptop';

test('the first rule that fits decides, and else the policy', () => {
  const cases: readonly (readonly [Authz, string, boolean])[] = [
    [[LAPTOP], LAPTOP, true],
    [[LAPTOP], `${LAPTOP} `, false],
    [[], LAPTOP, false],
    [{}, LAPTOP, false],
    [{ policy: 'allow' }, LAPTOP, true],
    [{ rules: [{ match: LAPTOP, policy: 'deny' }], policy: 'allow' }, LAPTOP, false],
    [
      {
        rules: [
          { match: LAPTOP, policy: 'deny' },
          { match: LAPTOP, policy: 'allow' },
        ],
      },
      LAPTOP,
      false,
    ],
    [{ rules: [{ match: '*', policy: 'allow' }] }, LAPTOP, false],
    [{ rules: [{ match: '*', policy: 'allow', format: 'glob' }] }, LAPTOP, true],
    [{ rules: [{ match: 'C=GB,*,CN=lap?op', policy: 'allow', format: 'glob' }] }, LAPTOP, true],
    [{ rules: [{ match: 'C=GB,*,CN=lap?', policy: 'allow', format: 'glob' }] }, LAPTOP, false],
    [{ rules: [{ match: '*CN=[l]aptop', policy: 'allow', format: 'glob' }] }, LAPTOP, false],
    [{ rules: [{ match: `${LAPTOP}?`, policy: 'allow', format: 'glob' }] }, LAPTOP, false],
    [{ rules: [{ match: `*${LAPTOP}**`, policy: 'allow', format: 'glob' }] }, LAPTOP, true],
  ];
  for (const [authz, name, allowed] of cases) {
    assert.equal(new Authorizer(authz).allows(name), allowed, JSON.stringify(authz));
  }
});

test('a pattern that almost fits at every place takes no time', () => {
  const match = `${'*a'.repeat(64)}b`;
  const authz = new Authorizer({ rules: [{ match, policy: 'allow', format: 'glob' }] });
  assert.equal(authz.allows('a'.repeat(4096)), false);
});

test('a file is read anew for each client; one that is not right lets nobody in', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const file = `${dir}/authz`;
  const write = (policy: string): void => writeFileSync(file, JSON.stringify({ policy }));
  write('allow');
  const [fresh, once] = [new Authorizer({ file }), new Authorizer({ file, refresh: false })];
  assert.deepEqual([fresh.allows(LAPTOP), once.allows(LAPTOP)], [true, true]);
  write('deny');
  assert.deepEqual([fresh.allows(LAPTOP), once.allows(LAPTOP)], [false, true]);
  write('allow');
  assert.equal(fresh.allows(LAPTOP), true);
  writeFileSync(file, '{');
  assert.equal(fresh.allows(LAPTOP), false);
  rmSync(file);
  assert.equal(fresh.allows(LAPTOP), false);
  assert.throws(() => new Authorizer({ file }), { code: 'ENOENT' });
  writeFileSync(file, '["*"]');
  assert.throws(() => new Authorizer({ file }), { code: 'EINVAL', message: /has no rules/ });
  writeFileSync(file, '{"file": "x"}');
  assert.throws(() => new Authorizer({ file }), { code: 'EINVAL', message: /has no rules/ });
});

const WRONG: readonly (readonly [unknown, RegExp])[] = [
  ['x', /^authz: expected/],
  [null, /^authz: expected/],
  [[1], /^authz: expected an array of distinguished names$/],
  [{ none: 1 }, /^Parameter 'none' is unexpected$/],
  [{ policy: 'maybe' }, /^Parameter 'policy' does not accept value 'maybe'$/],
  [{ rules: {} }, /^Invalid parameter type for 'rules'/],
  [{ rules: [1] }, /^Parameter 'rules\.0' is no rule$/],
  [{ rules: [{ match: 'x', policy: 'allow' }, { match: 'y' }] }, /^Parameter 'rules\.1\.policy' is missing$/],
  [{ rules: [{ policy: 'allow' }] }, /^Parameter 'rules\.0\.match' is missing$/],
  [{ rules: [{ match: 'x', policy: 'allow', format: 'regex' }] }, /does not accept value 'regex'$/],
  [{ rules: [{ match: 'x', policy: 'allow', x: 1 }] }, /^Parameter 'rules\.0\.x' is unexpected$/],
  [{ file: '/x', rules: [] }, /^authz: a file comes alone$/],
  [{ file: 1 }, /^authz: a file comes alone$/],
  [{ file: '/x', refresh: 'on' }, /'refresh'/],
  [{ refresh: true }, /^Parameter 'refresh' is unexpected$/],
];

for (const [authz, message] of WRONG) {
  test(`refused: ${JSON.stringify(authz)}`, () => {
    assert.throws(() => new Authorizer(authz as Authz), { code: 'EINVAL', message });
  });
}
