import assert from 'node:assert/strict';
import { createCipheriv } from 'node:crypto';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { inspect } from 'node:util';
import { ObjectKind, type ObjectType } from './object-type.ts';
import { withObjects } from './resolve.ts';
import { SECRET } from './secret.ts';
import { ObjectStore } from './store.ts';
import { addObject, objectHelp } from './text.ts';
import { OBJECT_TYPES } from './types.ts';

const KEY = Uint8Array.from({ length: 32 }, (_, i) => i * 7);
const IV = Uint8Array.from({ length: 16 }, (_, i) => i * 5);
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');

function encrypted(text: string): Uint8Array {
  const cipher = createCipheriv('aes-256-cbc', KEY, IV);
  return Buffer.concat([cipher.update(text), cipher.final()]);
}

async function stored(...texts: string[]): Promise<ObjectStore> {
  const objects = new ObjectStore();
  for (const text of texts) await addObject(objects, text);
  return objects;
}

function scratch(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'blockplane-test-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

const MASTER = `secret,id=m,format=base64,data=${base64(KEY)}`;
const SEALED = `iv=${base64(IV)},format=base64,data=${base64(encrypted('letmein'))}`;

test('a secret is its data, or its file to the last byte, as it is or in base64', async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/raw`, 'let\nme,in\n');
  writeFileSync(`${dir}/base64`, 'bGV0\nbWVpbg==\n');
  const objects = await stored(
    'secret,id=a,data=x,,y',
    'qom-type=secret,id=b,data=eA==,format=base64',
    `secret,id=c,file=${dir}/raw`,
    `secret,id=d,file=${dir}/base64,format=base64`,
    '{"qom-type": "secret", "id": "e", "data": "{,"}',
    'json:{"qom-type": "secret", "id": "f", "data": "\\u00e9"}',
  );
  const text = (id: string): string => objects.get(id, SECRET).text;
  assert.deepEqual('abcdef'.split('').map(text), ['x,y', 'x', 'let\nme,in\n', 'letmein', '{,', 'é']);
});

test('a secret that is encrypted with another one is what it was before', async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/sealed`, encrypted('letmein'));
  const objects = await stored(
    MASTER,
    `secret,id=a,keyid=m,${SEALED}`,
    `secret,id=b,keyid=m,iv=${base64(IV)},file=${dir}/sealed`,
  );
  assert.equal(objects.get('a', SECRET).text, 'letmein');
  assert.equal(objects.get('b', SECRET).text, 'letmein');
});

const HUSH = 'hush-hush';
const REFUSED: readonly (readonly [string, RegExp])[] = [
  ['secret', /^Parameter 'id' is missing$/],
  ['id=x', /^Parameter 'qom-type' is missing$/],
  ['', /^Parameter 'qom-type' is missing$/],
  ['bogus,id=x', /^Parameter 'qom-type' does not accept value 'bogus'$/],
  ['constructor,id=x', /^Parameter 'qom-type' does not accept value 'constructor'$/],
  ['secret,id=1x,data=a', /^Parameter 'id' expects an identifier/],
  ['secret,id=x y,data=a', /^Parameter 'id' expects an identifier/],
  ['secret,id=x', /^Either 'file' or 'data' must be provided$/],
  ['secret,id=x,data=a,file=b', /^'file' and 'data' are mutually exclusive$/],
  ['secret,id=x,data=a,format=bogus', /^Parameter 'format' does not accept value 'bogus'$/],
  ['secret,id=x,data=a,foo=b', /^Parameter 'foo' is unexpected$/],
  ['secret,id=x,data.b=1', /^Parameters 'data\.\*' are unexpected$/],
  ['secret,id=x,data=a,keyid=k', /^No secret with id 'k'$/],
  ['secret,id=x,data=a,keyid=x', /^No secret with id 'x'$/],
  ['secret,id=x,file=/nonexistent/file', /^Could not read '\/nonexistent\/file': No such file or directory$/],
  ['secret,id=x,file=/', /^Could not read '\/': Is a directory$/],
  ['secret,id=x,file=/dev/zero', /^Could not read '\/dev\/zero': it is longer than 65536 bytes$/],
  ['{"qom-type": "secret", "id": 5, "data": "a"}', /^Invalid parameter type for 'id', expected: string$/],
  ['{"qom-type": 1}', /^Invalid parameter type for 'qom-type', expected: string$/],
  ['{"qom-type": "secret", "id": "x", "data": 1}', /^Invalid parameter type for 'data', expected: string$/],
  [`{"qom-type": "secret", "id": "x", "data": "${HUSH}`, /^JSON parse error$/],
  [`secret,id=x,data=${HUSH},${HUSH}`, /^Expected '=' in part 4 of the options$/],
  [`secret,id=x,format=base64,data=${HUSH}!`, /^Base64 data contains invalid characters$/],
  ['secret,id=x,format=base64,data=bGV0bWVpbg', /^Base64 data is not whole$/],
  ['secret,id=x,format=base64,data=bGV0bWVpbg==bGV0', /^Base64 data is not whole$/],
  [`secret,id=x,keyid=short,${SEALED}`, /^Key should be 32 bytes in length$/],
  ['secret,id=x,keyid=m,format=base64,data=AAAA', /^IV is required to decrypt secret$/],
  ['secret,id=x,keyid=m,iv=YWJj,format=base64,data=AAAA', /^IV should be 16 bytes in length not 3$/],
  [`secret,id=x,keyid=m,iv=${base64(IV)},data=${HUSH}`, /^Length 9 must be a multiple of block size 16$/],
  [`secret,id=x,keyid=m,iv=${base64(IV)},data=`, /^Length 0 must be a multiple of block size 16$/],
  [`secret,id=x,keyid=zeroes,${SEALED}`, /^Incorrect number of padding bytes found on decrypted data$/],
];

for (const [text, why] of REFUSED) {
  test(`an object that cannot be is refused, and says nothing secret: ${text.slice(0, 60)}`, async () => {
    const zeroes = `secret,id=zeroes,format=base64,data=${base64(new Uint8Array(32))}`;
    const objects = await stored(MASTER, 'secret,id=short,data=abc', zeroes);
    await assert.rejects(addObject(objects, text), (error: Error) => {
      assert.match(error.message, why);
      assert.doesNotMatch(error.message, /hush/);
      return true;
    });
    // The id is free for another try.
    assert.deepEqual(
      objects.list().map(({ id }) => id),
      ['m', 'short', 'zeroes'],
    );
  });
}

test('ids are unique, and free again once their objects are removed', async () => {
  const objects = await stored('secret,id=x,data=a');
  await assert.rejects(addObject(objects, 'secret,id=x,data=b'), { code: 'EEXIST' });
  assert.equal(objects.get('x', SECRET).text, 'a');
  await objects.remove('x');
  await assert.rejects(objects.remove('x'), { code: 'ENOENT' });
  await objects.add({ 'qom-type': 'secret', id: 'x', data: 'b' });
  assert.equal(objects.get('x', SECRET).text, 'b');
});

test('nothing that lists or prints objects has a secret in it', async () => {
  const objects = await stored(`secret,id=x,data=${HUSH},format=raw`);
  assert.deepEqual(objects.list(), [{ id: 'x', type: 'secret', options: { format: 'raw' } }]);
  const all = [objects, objects.get('x', SECRET), objects.list()];
  assert.doesNotMatch(inspect(all, { depth: null, showHidden: true }) + JSON.stringify(all), /hush/);
});

test('a program may have further types, that refer to objects and may be in use', async () => {
  const LAMP = new ObjectKind<{ lit: boolean }>('lamp', 'a lamp');
  const lampType: ObjectType<{ lit: boolean }> = {
    name: 'lamp',
    kind: LAMP,
    options: {
      lit: { type: 'boolean', required: true, help: 'whether it is lit' },
      watts: { type: 'integer', help: 'how much' },
      room: { type: 'size', help: 'how large' },
      parts: { type: 'any', help: 'what it has' },
    },
    create: ({ lit }) => ({ lit: lit as boolean }),
    remove({ lit }) {
      if (lit) throw new Error('it is lit');
    },
  };
  const objects = new ObjectStore([...OBJECT_TYPES, lampType]);
  await addObject(objects, 'lamp,id=a,lit=on,watts=0x10,room=4k,parts.0=x');
  assert.deepEqual(objects.list()[0]!.options, { lit: true, watts: 16, room: 4096, parts: ['x'] });
  assert.equal(objects.get('a', LAMP).lit, true);
  assert.throws(() => objects.get('a', SECRET), { message: "Object with id 'a' is not a secret" });
  await assert.rejects(objects.remove('a'), /it is lit/);
  assert.equal(objects.get('a', LAMP).lit, true);
  const wrongs: readonly (readonly [string, string])[] = [
    ['lamp,id=b', "Parameter 'lit' is missing"],
    ['lamp,id=b,lit=maybe', "Parameter 'lit' expects 'on' or 'off'"],
    ['lamp,id=b,lit=on,watts=x', "Parameter 'watts' expects integer"],
    ['lamp,id=b,lit=on,room=x', "Parameter 'room' expects a size"],
    ['{"qom-type":"lamp","id":"b","lit":"on"}', "Invalid parameter type for 'lit', expected: boolean"],
    ['{"qom-type":"lamp","id":"b","lit":true,"watts":1.5}', "Invalid parameter type for 'watts', expected: integer"],
    ['{"qom-type":"lamp","id":"b","lit":true,"room":-1}', "Invalid parameter type for 'room', expected: integer"],
  ];
  for (const [text, message] of wrongs) await assert.rejects(addObject(objects, text), { message });
  assert.match(objectHelp(objects, 'help')!, /^List of user creatable objects:\n( {2}[\w-]+\n)* {2}lamp\n {2}secret\n/);
  assert.match(objectHelp(objects, 'lamp,help')!, /^lamp options:\n {2}lit=<boolean>/);
  assert.equal(objectHelp(objects, 'lamp,id=help'), undefined);
});

test('options that name secrets have them in their place; what names none stays as it is', async () => {
  const objects = await stored('secret,id=key,data=abc', 'secret,id=word,data=word');
  const plain = { driver: 'raw', file: { driver: 'file', filename: 'x' } };
  const tree = {
    driver: 'qcow2',
    encrypt: { 'key-secret': 'key', format: 'luks' },
    backing: { driver: 'qcow2', 'encrypt.key-secret': 'key', file: 'node' },
    children: [plain, { driver: 'https', url: 'u', 'password-secret': 'word', 'cookie-secret': undefined }],
    file: { driver: 'https', url: 'u', 'bearer-token-secret': 'word' },
  };
  assert.deepEqual(withObjects(tree, objects), {
    driver: 'qcow2',
    encrypt: { key: 'abc', format: 'luks' },
    backing: { driver: 'qcow2', 'encrypt.key': 'abc', file: 'node' },
    children: [plain, { driver: 'https', url: 'u', password: 'word', 'cookie-secret': undefined }],
    file: { driver: 'https', url: 'u', 'bearer-token': 'word' },
  });
  assert.equal(withObjects(plain, objects), plain);
  assert.equal(withObjects('name', objects), 'name');
  const both = { 'encrypt.key': 'a', 'encrypt.key-secret': 'key' };
  assert.throws(() => withObjects(both, objects), { code: 'EINVAL', message: /'encrypt.key' and .* exclude/ });
  assert.throws(() => withObjects({ 'key-secret': 'none' }, objects), { code: 'ENOENT' });
  assert.throws(() => withObjects({ 'key-secret': 'key' }, undefined), { code: 'ENOENT' });
  assert.throws(() => withObjects({ 'key-secret': 5 }, objects), { code: 'EINVAL' });
});

test('a tree that goes round in a circle, or is wide by being shared, ends', async () => {
  const round: Record<string, unknown> = { driver: 'raw' };
  round.file = round;
  assert.equal(withObjects(round, undefined), round);
  let wide: Record<string, unknown> = { driver: 'null-co' };
  for (let depth = 0; depth < 200; depth++) wide = { a: wide, b: wide };
  assert.equal(withObjects(wide, undefined), wide);
});

test('a secret that is not UTF-8 cannot be a passphrase', async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/most`, '');
  truncateSync(`${dir}/most`, 65536);
  const objects = await stored('secret,id=x,format=base64,data=//8=', `secret,id=y,file=${dir}/most`);
  assert.throws(() => objects.get('x', SECRET).text, { message: 'Data from secret x is not valid UTF-8' });
  assert.equal(objects.get('y', SECRET).bytes.length, 65536);
});
