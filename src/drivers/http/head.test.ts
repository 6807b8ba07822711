import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BodyReader, HEAD_MAX, HeadReader, NOT_HTTP, TOO_LONG } from './head.ts';

const bytes = (text: string): Uint8Array => Uint8Array.from(text, (letter) => letter.charCodeAt(0));
const HEAD = 'HTTP/1.1 206 Partial Content\r\nETag: "1" \r\nx-a: 1\r\nX-A:\t2\r\n\r\n';

/** Feeds `text` in pieces of `step` bytes; how many bytes the head had. */
function fed(reader: HeadReader, text: string, step: number): number {
  const all = bytes(text);
  let at = 0;
  while (at < all.length && reader.head === undefined) at += reader.feed(all.subarray(at, at + step));
  return at;
}

test('a head is the same in pieces of any length, and ends where it ends', () => {
  for (let step = 1; step <= HEAD.length + 4; step++) {
    const reader = new HeadReader();
    for (let again = 0; again < 2; again++) {
      reader.begin();
      assert.equal(fed(reader, `${HEAD}body`, step), HEAD.length);
      assert.ok(typeof reader.head === 'object');
      assert.equal(reader.head.status, 206);
      assert.deepEqual({ ...reader.head.headers }, { etag: '"1"', 'x-a': ['1', '2'] });
    }
  }
});

test('heads of 1xx come before the one that counts, and count with it', () => {
  const reader = new HeadReader();
  const all = bytes('HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n');
  const first = reader.feed(all);
  assert.equal((reader.head as { status: number }).status, 103);
  reader.begin(true);
  assert.equal(first + reader.feed(all.subarray(first)), all.length);
  assert.equal((reader.head as { status: number }).status, 200);
  reader.begin();
  while (typeof reader.head !== 'string') {
    reader.begin(true);
    reader.feed(all.subarray(0, first));
  }
  assert.equal(reader.head, TOO_LONG);
});

test('a connection is used again only where both sides mean it', () => {
  const persistent = (head: string): unknown => {
    const reader = new HeadReader();
    fed(reader, `${head}\r\n\r\n`, 1000);
    return typeof reader.head === 'object' && reader.head.persistent;
  };
  assert.equal(persistent('HTTP/1.1 200'), true);
  assert.equal(persistent('HTTP/1.1 200 \r\nconnection: keep-alive'), true);
  assert.equal(persistent('HTTP/1.1 200 OK\r\nConnection: x, Close'), false);
  assert.equal(persistent('HTTP/1.1 200 OK\r\nconnection: x\r\nconnection: close'), false);
  assert.equal(persistent('HTTP/1.0 200 OK\r\nconnection: keep-alive'), false);
});

test('what is no head is refused at its first bytes, and one without end when it is too long', () => {
  const wrong = [
    ...['SSH-2.0-x', '\r\n', ' HTTP/1.1 200 OK', 'HTTP/2 200 OK\r\n\r\n', 'HTTP/1.1 20 OK\r\n\r\n'],
    ...['HTTP/1.1 2000 OK\r\n\r\n', 'HTTP/1.1  200 OK\r\n\r\n', 'HTTP/1.1 600 X\r\n\r\n', 'http/1.1 200 OK\r\n\r\n'],
    ...['no colon', ' folded: x', 'a b: c', ': x', 'x: a\nb', 'x: a\rb', 'x: \0', 'x : y'].map(
      (line) => `HTTP/1.1 200 OK\r\nx: y\r\n${line}\r\n\r\n`,
    ),
  ];
  for (const text of wrong) {
    for (const step of [1, 1000]) {
      const reader = new HeadReader();
      fed(reader, text, step);
      assert.equal(reader.head, NOT_HTTP, JSON.stringify(text));
    }
  }
  for (const step of [1, 4096]) {
    const reader = new HeadReader();
    assert.equal(fed(reader, `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(2 * HEAD_MAX)}`, step), HEAD_MAX);
    assert.equal(reader.head, TOO_LONG);
  }
});

interface Fed {
  readonly content: string;
  readonly taken: number;
  readonly ended: boolean;
  readonly wrong: string | undefined;
}

function body(headers: Record<string, string | string[]>, text: string, step: number): Fed {
  const reader = new BodyReader(headers);
  const all = bytes(text);
  let content = '';
  let taken = 0;
  while (taken < all.length && !reader.ended && reader.wrong === undefined) {
    content += String.fromCharCode(...reader.next(all.subarray(taken, taken + step)));
    taken += reader.taken;
  }
  return { content, taken, ended: reader.ended, wrong: reader.wrong };
}

test('bodies end after their length, with their last chunk, or with the connection', () => {
  const chunked = '4;x="y"\r\nabcd\r\n00A\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\n';
  for (let step = 1; step < 70; step++) {
    const wrong = undefined;
    assert.deepEqual(body({ 'content-length': '5' }, 'abcdefg', step), {
      ...{ content: 'abcde', taken: 5, ended: true, wrong },
    });
    assert.deepEqual(body({ 'transfer-encoding': 'Chunked' }, `${chunked}more`, step), {
      ...{ content: 'abcd0123456789', taken: chunked.length, ended: true, wrong },
    });
    assert.deepEqual(body({}, 'abcdefg', step), { content: 'abcdefg', taken: 7, ended: false, wrong });
  }
  assert.equal(new BodyReader({ 'content-length': '0' }).ended, true);
  assert.equal(new BodyReader({}).untilClose, true);
});

test('a framing that can be read in two ways is refused', () => {
  const headers = [
    { 'content-length': ['1', '2'] },
    { 'content-length': ['1', '1'] },
    ...['', '-1', '+1', '0x10', '1e3', '1 ', '9'.repeat(16)].map((length) => ({ 'content-length': length })),
    { 'content-length': '1', 'transfer-encoding': 'chunked' },
    ...['gzip', 'gzip, chunked', 'chunked, chunked', 'identity'].map((coding) => ({ 'transfer-encoding': coding })),
  ];
  for (const one of headers) assert.equal(new BodyReader(one).wrong, NOT_HTTP, JSON.stringify(one));
  const chunks = [
    ...['\r\n', 'x\r\n', '-1\r\n', '0x1\r\n', ' 1\r\n', '1\n', '1 1\r\n', `${'f'.repeat(13)}\r\n`],
    ...['1\r\nab\r\n', '1\r\na\n', '1\r\na0\r\n', `1;${'x'.repeat(2000)}`, '0\r\nx\n\r\n'],
  ];
  for (const text of chunks) {
    for (const step of [1, 5000]) {
      assert.equal(body({ 'transfer-encoding': 'chunked' }, text, step).wrong, NOT_HTTP, JSON.stringify(text));
    }
  }
  const trailer = body({ 'transfer-encoding': 'chunked' }, `0\r\n${'x: y\r\n'.repeat(HEAD_MAX / 4)}`, 4096);
  assert.equal(trailer.wrong, TOO_LONG);
});
