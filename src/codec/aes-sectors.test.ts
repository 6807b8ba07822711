import assert from 'node:assert/strict';
import { createCipheriv, createHash } from 'node:crypto';
import { test } from 'node:test';
import { pattern } from '../../test/harness.ts';
import { KiB, SECTOR } from '../base/units.ts';
import { legacyAesCipher } from './aes-legacy.ts';
import { aesSectors } from './aes-sectors.ts';
import { type CipherSpec, keyLengths } from './sector-cipher.ts';

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, 'hex'));
}

/** The IEEE's plaintext: 0, 1 .. 255, twice. */
const COUNTING = Uint8Array.from({ length: SECTOR }, (_, i) => i & 255);

test('XTS-AES: vectors 4 and 10 of IEEE 1619', () => {
  const vectors = [
    {
      key: '27182818284590452353602874713526' + '31415926535897932384626433832795',
      sector: 0,
      first: '27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c',
      last: 'a282df920147beabe421ee5319d0568',
    },
    {
      key:
        '2718281828459045235360287471352662497757247093699959574966967627' +
        '3141592653589793238462643383279502884197169399375105820974944592',
      sector: 0xff,
      first: '1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b',
      last: '',
    },
  ];
  for (const { key, sector, first, last } of vectors) {
    const cipher = aesSectors({ mode: 'xts', ivgen: 'plain64', ivgenHash: undefined }, hex(key));
    const bytes = COUNTING.slice();
    cipher.encrypt(bytes, sector);
    const text = Buffer.from(bytes).toString('hex');
    assert.equal(text.slice(0, first.length), first);
    assert.ok(text.endsWith(last), text);
    cipher.decrypt(bytes, sector);
    assert.deepEqual(bytes, COUNTING);
  }
});

/** The vector of a sector as OpenSSL's bare AES makes it. */
function vectorOf({ ivgen, ivgenHash }: CipherSpec, key: Uint8Array, sector: number): Uint8Array {
  const vector = new Uint8Array(16);
  const view = new DataView(vector.buffer);
  view.setUint32(0, sector % 2 ** 32, true);
  if (ivgen !== 'plain') view.setUint32(4, Math.floor(sector / 2 ** 32), true);
  if (ivgen !== 'essiv') return vector;
  const salt = createHash(ivgenHash!).update(key).digest();
  return createCipheriv(`aes-${salt.length * 8}-ecb`, salt, null)
    .setAutoPadding(false)
    .update(vector);
}

/** As OpenSSL does it, sector by sector. */
function reference(spec: CipherSpec, key: Uint8Array, plain: Uint8Array, first: number): Uint8Array {
  const result = new Uint8Array(plain.length);
  const bits = (spec.mode === 'xts' ? key.length / 2 : key.length) * 8;
  for (let at = 0; at < plain.length; at += SECTOR) {
    const iv = spec.mode === 'ecb' ? null : vectorOf(spec, key, first + at / SECTOR);
    const cipher = createCipheriv(`aes-${bits}-${spec.mode}`, key, iv).setAutoPadding(false);
    result.set(cipher.update(plain.subarray(at, at + SECTOR)), at);
  }
  return result;
}

for (const mode of ['xts', 'cbc', 'ecb'] as const) {
  for (const [ivgen, ivgenHash] of [['plain'], ['plain64'], ['essiv', 'sha256'], ['essiv', 'md5']] as const) {
    test(`aes-${mode} with ${ivgen}${ivgenHash ? `:${ivgenHash}` : ''}: as OpenSSL encrypts each sector`, () => {
      const spec = { mode, ivgen, ivgenHash };
      // OpenSSL has no AES-192 in XTS mode.
      for (const length of keyLengths(mode).filter((bytes) => bytes !== 48)) {
        const key = pattern(length, 5);
        const cipher = aesSectors(spec, key);
        // One sector; more than fit into the working memory; numbers that cross 32 bits.
        for (const [bytes, first] of [
          [SECTOR, 1],
          [(64 + 64 + 3) * KiB, 3],
          [4 * SECTOR, 2 ** 32 - 2],
          [2 * SECTOR, 2 ** 44 - 1],
        ] as const) {
          const plain = pattern(bytes, first % 1000);
          const work = plain.slice();
          cipher.encrypt(work, first);
          assert.deepEqual(work, reference(spec, key, plain, first), `${length} bytes of key, sector ${first}`);
          cipher.decrypt(work, first);
          assert.deepEqual(work, plain);
        }
      }
    });
  }
}

test('shared memory that begins anywhere is encrypted in place, and nothing beside it', () => {
  const cipher = aesSectors({ mode: 'xts', ivgen: 'plain64', ivgenHash: undefined }, pattern(64));
  const memory = new Uint8Array(new SharedArrayBuffer(3 * SECTOR));
  cipher.encrypt(memory.subarray(3, 3 + 2 * SECTOR), 9);
  const alone = new Uint8Array(2 * SECTOR);
  cipher.encrypt(alone, 9);
  assert.deepEqual(memory.slice(3, 3 + 2 * SECTOR), alone);
  assert.ok(memory.subarray(0, 3).every((byte) => byte === 0) && memory.subarray(3 + 2 * SECTOR).every((b) => b === 0));
});

test('essiv takes a hash that is as long as a key of AES', () => {
  const make = () => aesSectors({ mode: 'cbc', ivgen: 'essiv', ivgenHash: 'sha1' }, pattern(32));
  assert.throws(make, { code: 'ENOTSUP', message: /no AES with a key of sha1/ });
});

test('the old encryption: the passphrase is the key, filled up or cut off', () => {
  const spec = { mode: 'cbc', ivgen: 'plain64', ivgenHash: undefined } as const;
  for (const passphrase of ['', 'abc', 'exactly 16 bytes', 'more than sixteen bytes']) {
    const key = new Uint8Array(16);
    key.set(Buffer.from(passphrase).subarray(0, 16));
    const bytes = COUNTING.slice();
    legacyAesCipher(new TextEncoder().encode(passphrase)).encrypt(bytes, 7);
    assert.deepEqual(bytes, reference(spec, key, COUNTING, 7));
  }
});
