import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WebSocketFraming } from './websocket.ts';

const MASK = [1, 2, 3, 4];

/** A frame of a client. */
function frame(first: number, payload: Uint8Array, masked = true): Uint8Array {
  const { length } = payload;
  const long = [...Array(4).fill(0), length >>> 24, (length >> 16) & 255, (length >> 8) & 255, length & 255];
  const head = length < 126 ? [length] : length < 65536 ? [126, length >> 8, length & 255] : [127, ...long];
  if (!masked) return Uint8Array.of(first, ...head, ...payload);
  head[0]! |= 128;
  const hidden = payload.map((byte, i) => byte ^ MASK[i % 4]!);
  return Buffer.concat([Uint8Array.of(first, ...head, ...MASK), hidden]);
}

interface Heard {
  carried: string;
  answers: Uint8Array[];
  ended: boolean;
}

/** What a client's bytes come to, in pieces of `step`. */
function hear(bytes: Uint8Array, step: number): Heard {
  const framing = new WebSocketFraming();
  const heard: Heard = { carried: '', answers: [], ended: false };
  for (let at = 0; at < bytes.length; at += step) {
    const part = framing.decode(
      bytes.subarray(at, at + step),
      (answer) => heard.answers.push(Uint8Array.from(answer)),
      () => {
        heard.ended = true;
      },
    );
    heard.carried += new TextDecoder().decode(part);
  }
  return heard;
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

test('frames are carried on however they are cut, and a ping between their parts is answered', () => {
  const bytes = Buffer.concat([
    ...[frame(0x02, text('{"a":')), frame(0x89, text('ping')), frame(0x80, text('1}'))],
    ...[frame(0x82, text('')), frame(0x82, text('x'.repeat(300))), frame(0x82, text('y'.repeat(70_000)))],
    ...[frame(0x8a, text('pong')), frame(0x82, text('z'))],
  ]);
  for (const step of [1, 2, 7, 4096, bytes.length]) {
    const heard = hear(bytes, step);
    assert.equal(heard.carried, `{"a":1}${'x'.repeat(300)}${'y'.repeat(70_000)}z`);
    assert.deepEqual(heard.answers, [Uint8Array.of(0x8a, 4, ...text('ping'))]);
    assert.equal(heard.ended, false);
  }
});

test('a close is answered with itself; what comes behind it is lost', () => {
  const bye = Uint8Array.of(3, 232, ...text('bye'));
  const heard = hear(Buffer.concat([frame(0x82, text('a')), frame(0x88, bye), frame(0x82, text('b'))]), 5);
  assert.deepEqual(heard, { carried: 'a', answers: [Uint8Array.of(0x88, bye.length, ...bye)], ended: true });
});

const REFUSED: readonly (readonly [what: string, bytes: Uint8Array, status: number])[] = [
  ['text', frame(0x81, text('a')), 1003],
  ['a kind that there is not', frame(0x83, text('a')), 1003],
  ['no mask', frame(0x82, text('a'), false), 1002],
  ['a reserved bit', frame(0xc2, text('a')), 1002],
  ['a long ping', frame(0x89, new Uint8Array(126)), 1002],
  ['a ping in parts', frame(0x09, text('a')), 1002],
];

test('frames that are not spoken here end the connection, with the reason in numbers', () => {
  for (const [what, bytes, status] of REFUSED) {
    const { carried, answers, ended } = hear(bytes, bytes.length);
    assert.deepEqual(answers, [Uint8Array.of(0x88, 2, status >> 8, status & 255)], what);
    assert.deepEqual([carried, ended], ['', true], what);
  }
});

test('what is sent is in one frame, whose length is as short as it can be', () => {
  const framing = new WebSocketFraming();
  assert.deepEqual(framing.encode('ab'), Uint8Array.of(0x82, 2, 97, 98));
  assert.deepEqual(framing.encode('a'.repeat(126)).subarray(0, 4), Uint8Array.of(0x82, 126, 0, 126));
  const long = framing.encode('a'.repeat(65_536));
  assert.deepEqual(long.subarray(0, 10), Uint8Array.of(0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0));
  assert.equal(long.length, 65_546);
});
