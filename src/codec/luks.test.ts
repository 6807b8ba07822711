import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import { pattern } from '../../test/harness.ts';
import { createLuks, type LuksOptions, luksCipher } from './luks.ts';
import { DIGEST_ROUNDS_MAX, LUKS_HEADER_BYTES, parseLuksHeader, SLOT_ROUNDS_MAX } from './luks-header.ts';

const PASSPHRASE = new TextEncoder().encode('abc');

const DEFAULTS: LuksOptions = {
  ...{ cipher: undefined, mode: undefined, ivgen: undefined, ivgenHash: undefined, hash: undefined, iterTime: 1 },
};

async function make(changed: Partial<LuksOptions> = {}): Promise<Uint8Array> {
  return (await createLuks({ ...DEFAULTS, ...changed }, PASSPHRASE)).bytes;
}

function unlock(bytes: Uint8Array, passphrase = PASSPHRASE) {
  return luksCipher(async (at, length) => bytes.slice(at, at + length), bytes.length, passphrase);
}

describe('LUKS: new headers', () => {
  it('the defaults are those of QEMU, and all eight slots have their place', async () => {
    const bytes = await make();
    const { cipher, hash, keyBytes, payloadAt, uuid, slots } = parseLuksHeader(bytes, bytes.length);
    assert.deepEqual([hash, keyBytes, payloadAt], ['sha256', 64, 2_068_480]);
    assert.deepEqual(cipher, { mode: 'xts', ivgen: 'plain64', ivgenHash: undefined });
    assert.match(uuid, /^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/);
    assert.deepEqual(
      slots.map((slot) => slot?.at),
      [4096, ...new Array(7).fill(undefined)],
    );
    const view = new DataView(bytes.buffer);
    const places = Array.from({ length: 8 }, (_, i) => view.getUint32(208 + 48 * i + 40) * 512);
    assert.deepEqual(
      places,
      [0, 1, 2, 3, 4, 5, 6, 7].map((i) => 4096 + i * 258_048),
    );
  });

  for (const [cipher, mode, ivgen, ivgenHash, hash] of [
    ['aes-128', 'xts', 'plain64', undefined, 'sha1'],
    ['aes-192', 'xts', 'plain', undefined, 'sha512'],
    ['aes-256', 'cbc', 'essiv', undefined, 'sha256'],
    ['aes-256', 'cbc', 'essiv', 'md5', 'sha384'],
    ['aes-128', 'ecb', 'plain64', undefined, 'ripemd160'],
    ['aes-128', 'cbc', 'plain64', undefined, 'sha224'],
  ] as const) {
    it(`${cipher} ${mode} ${ivgen} ${hash} opens with its passphrase, and with no other`, async () => {
      const bytes = await make({ cipher, mode, ivgen, ivgenHash, hash });
      const ciphers = [await unlock(bytes), await unlock(bytes)] as const;
      const [plain, work] = [pattern(1024), pattern(1024)];
      ciphers[0].encrypt(work, 5);
      assert.notDeepEqual(work, plain);
      ciphers[1].decrypt(work, 5);
      assert.deepEqual(work, plain);
      await assert.rejects(unlock(bytes, new TextEncoder().encode('abd')), {
        code: 'EACCES',
        message: 'Could not unlock the image: no key slot opens with this passphrase',
      });
    });
  }

  it('iter-time decides about the iterations', async () => {
    const iterations = async (iterTime: number): Promise<number> => {
      const bytes = await make({ iterTime });
      return parseLuksHeader(bytes, bytes.length).slots[0]!.iterations;
    };
    const [few, many] = [await iterations(2), await iterations(200)];
    assert.ok(many > 10 * few && few >= 1000, `${few} and ${many}`);
  });

  it('what is not there is refused by its name', async () => {
    const refused = (changed: Partial<LuksOptions>, code: string, why: RegExp): Promise<void> =>
      assert.rejects(make(changed), (error) => {
        const { code: its, message } = error as NodeJS.ErrnoException;
        return its === code && why.test(message);
      });
    await refused({ cipher: 'serpent-256' }, 'ENOTSUP', /'cipher-alg' serpent-256 is not supported/);
    await refused({ cipher: 'aes-192', mode: 'cbc' }, 'ENOTSUP', /aes-192 with 'cipher-mode' cbc/);
    await refused({ mode: 'ctr' }, 'ENOTSUP', /'cipher-mode' ctr/);
    await refused({ ivgen: 'null' }, 'ENOTSUP', /'ivgen-alg' null/);
    await refused({ ivgen: 'essiv', ivgenHash: 'sha1' }, 'ENOTSUP', /no AES with a key of sha1/);
    await refused({ ivgen: 'essiv', ivgenHash: 'crc' }, 'ENOTSUP', /ivgen-hash-alg 'crc'/);
    await refused({ hash: 'whirlpool' }, 'ENOTSUP', /hash-alg 'whirlpool'/);
    await refused({ iterTime: 0 }, 'EINVAL', /'iter-time' is 0/);
    await refused({ iterTime: Number.NaN }, 'EINVAL', /'iter-time' is NaN/);
  });
});

describe('LUKS: damaged and hostile headers', () => {
  let good: Uint8Array;
  before(async () => {
    good = (await make({ hash: 'sha1', cipher: 'aes-128' })).slice();
  });

  /** Key bytes are 32, so with SHA-1 a slot takes two rounds for each iteration, and the digest one. */
  const cases: readonly (readonly [string, (view: DataView) => void, string, RegExp])[] = [
    ['magic', (view) => view.setUint32(0, 0x4c554b00), 'EINVAL', /its magic is wrong/],
    ['version', (view) => view.setUint16(6, 2), 'ENOTSUP', /LUKS version 2 is not supported/],
    ['cipher', (view) => put(view, 8, 'serpent\0'), 'ENOTSUP', /cipher-name 'serpent' is not supported/],
    ['cipher name that is none', (view) => put(view, 8, 'a\nb\0'), 'EINVAL', /cipher-name is not a name/],
    ['cipher name without end', (view) => put(view, 8, 'a'.repeat(32)), 'EINVAL', /cipher-name is not a name/],
    ['mode', (view) => put(view, 40, 'ctr-plain64\0'), 'ENOTSUP', /cipher-mode 'ctr-plain64'/],
    ['mode without vectors', (view) => put(view, 40, 'xts\0'), 'ENOTSUP', /cipher-mode 'xts'/],
    ['essiv without a hash', (view) => put(view, 40, 'xts-essiv\0'), 'ENOTSUP', /cipher-mode 'xts-essiv'/],
    ['essiv with a strange one', (view) => put(view, 40, 'xts-essiv:md4\0'), 'ENOTSUP', /essiv hash .* 'md4'/],
    ['essiv with a bad one', (view) => put(view, 40, 'xts-essiv:sha1\0'), 'ENOTSUP', /no AES with a key of sha1/],
    ['hash', (view) => put(view, 72, 'tiger\0'), 'ENOTSUP', /hash-spec 'tiger'/],
    ['hash of every object', (view) => put(view, 72, 'constructor\0'), 'ENOTSUP', /hash-spec 'constructor'/],
    ['key bytes', (view) => view.setUint32(108, 33), 'EINVAL', /key-bytes is 33; .* one of 32, 48, 64/],
    ['many key bytes', (view) => view.setUint32(108, 2 ** 32 - 1), 'EINVAL', /key-bytes is 4294967295/],
    ['digest iterations', (view) => view.setUint32(164, 0), 'EINVAL', /mk-digest-iter is 0/],
    ['many of them', (view) => view.setUint32(164, DIGEST_ROUNDS_MAX + 1), 'EINVAL', /mk-digest-iter is 16777217/],
    ['payload', (view) => view.setUint32(104, 100), 'EINVAL', /payload-offset is 100 sectors, not behind key slot 0/],
    ['slot state', (view) => view.setUint32(208 + 48, 7), 'EINVAL', /active of key slot 1 is 0x7/],
    ['slot iterations', (view) => view.setUint32(212, 0), 'EINVAL', /iterations of key slot 0 is 0/],
    ['many of them', (view) => view.setUint32(212, SLOT_ROUNDS_MAX / 2 + 1), 'EINVAL', /key slot 0 .* 1 to 33554432/],
    ['stripes', (view) => view.setUint32(252, 0), 'EINVAL', /stripes of key slot 0 is 0/],
    ['many stripes', (view) => view.setUint32(252, 2 ** 32 - 1), 'EINVAL', /stripes of key slot 0 is 4294967295/],
    [
      'material in the header',
      (view) => view.setUint32(248, 1),
      'EINVAL',
      /key slot 0 is 1 sectors, inside the header/,
    ],
    ['material far away', (view) => view.setUint32(248, 2 ** 32 - 1), 'EINVAL', /ends behind the 1052672 bytes/],
    ['no slot', (view) => view.setUint32(208, 0xdead), 'EINVAL', /none of its key slots is in use/],
    [
      'material in other material',
      (view) => {
        for (let at = 0; at < 48; at += 4) view.setUint32(208 + 48 + at, view.getUint32(208 + at));
        view.setUint32(208 + 48 + 40, 10);
      },
      'EINVAL',
      /key-material-offset of key slot 1 is 10 sectors, inside key slot 0/,
    ],
  ];
  for (const [name, change, code, why] of cases) {
    it(`${name}: ${why.source}`, async () => {
      const bytes = good.slice();
      change(new DataView(bytes.buffer));
      await assert.rejects(unlock(bytes), (error) => {
        const { code: its, message } = error as NodeJS.ErrnoException;
        assert.match(message, why);
        return its === code;
      });
    });
  }

  it('one that is cut off', async () => {
    await assert.rejects(unlock(good.slice(0, LUKS_HEADER_BYTES - 1)), /it is cut off after 591 bytes/);
    await assert.rejects(unlock(new Uint8Array(0)), /it is cut off after 0 bytes/);
    await assert.rejects(unlock(good.slice(0, 4096)), /ends behind the 4096 bytes/);
  });

  it('a slot whose material is damaged opens with nothing', async () => {
    const bytes = good.slice();
    bytes[5000]! ^= 1;
    await assert.rejects(unlock(bytes), { code: 'EACCES' });
  });

  it('any bytes at all end in an error that is known', async () => {
    for (let seed = 1; seed <= 300; seed++) {
      const bytes = good.slice(0, 4096);
      const noise = pattern(3, seed);
      // A byte of the header, somewhere.
      bytes[(noise[0]! * 256 + noise[1]!) % LUKS_HEADER_BYTES] = noise[2]!;
      await assert.rejects(unlock(bytes), (error) => 'errno' in (error as object), `seed ${seed}`);
    }
  });
});

function put(view: DataView, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) view.setUint8(at + i, text.charCodeAt(i));
}
