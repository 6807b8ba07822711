import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync, inflateRawSync, constants as zlib } from 'node:zlib';
import { Prng } from '../base/prng.ts';
import { KiB } from '../base/units.ts';
import { nativeDeflate } from './deflate.ts';

const deflate = nativeDeflate();
const options = { skip: deflate === undefined && 'Node exports no zlib here', timeout: 20_000 };

function shared(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
}

/** Text, noise, and both. */
function blocks(): Uint8Array[] {
  const random = new Prng(1);
  return [1, 2, 3, 7, 60].map((spread) =>
    Uint8Array.from({ length: 64 * KiB }, (_, i) => (i % spread === 0 ? random.below(256) : 65 + (i % 13))),
  );
}

function ended(start: (done: (length: number) => void) => void): Promise<number> {
  return new Promise((resolve) => start(resolve));
}

test(
  'what is compressed here is a raw deflate stream, and what node:zlib compresses is read here',
  options,
  async () => {
    for (const plain of blocks()) {
      const from = shared(plain);
      const to = shared(new Uint8Array(80 * KiB));
      const length = await ended((done) => deflate!.compress(from, to, done));
      assert.deepEqual(new Uint8Array(inflateRawSync(to.slice(0, length))), plain);
      const packed = shared(deflateRawSync(plain));
      const back = shared(new Uint8Array(plain.length));
      assert.equal(await ended((done) => deflate!.decompress(packed, back, done)), plain.length);
      assert.deepEqual(new Uint8Array(back), plain);
    }
  },
);

test(
  'what does not fit, is cut off, or is no stream is refused, and the next one is not the worse for it',
  options,
  async () => {
    const plain = blocks()[2]!;
    const packed = deflateRawSync(plain);
    const room = (bytes: number): Uint8Array => shared(new Uint8Array(bytes));
    const inflated = (from: Uint8Array, bytes: number): Promise<number> =>
      ended((done) => deflate!.decompress(shared(from), room(bytes), done));
    for (let i = 0; i < 20; i++) {
      assert.equal(await ended((done) => deflate!.compress(shared(plain), room(packed.length - 100), done)), -1);
      assert.equal(await inflated(packed, plain.length - 1), -1);
      assert.ok((await inflated(packed.subarray(0, packed.length >> 1), plain.length)) < plain.length);
      assert.equal(await inflated(new Uint8Array(100).fill(0xff), 4096), -1);
      assert.equal(await inflated(Buffer.concat([packed, Buffer.alloc(300, 7)]), plain.length), plain.length);
    }
  },
);

test('a stream that holds all bytes and has no end is read', options, async () => {
  for (const plain of blocks()) {
    const packed = shared(deflateRawSync(plain, { finishFlush: zlib.Z_SYNC_FLUSH }));
    const back = shared(new Uint8Array(plain.length));
    assert.equal(await ended((done) => deflate!.decompress(packed, back, done)), plain.length);
    assert.deepEqual(new Uint8Array(back), plain);
  }
});

test('many at a time are not mixed up', options, async () => {
  const all = blocks();
  const works = Array.from({ length: 40 }, async (_, i) => {
    const plain = all[i % all.length]!;
    const back = shared(new Uint8Array(plain.length));
    await ended((done) => deflate!.decompress(shared(deflateRawSync(plain)), back, done));
    assert.deepEqual(new Uint8Array(back), plain);
  });
  await Promise.all(works);
});
