import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Json, WideInteger, writeJson } from './json.ts';
import { JSON_LIMITS, type JsonLimits, JsonReader } from './json-reader.ts';

/** What comes out of `text`, errors as `!message`, read in pieces of `piece` bytes. */
function read(text: string | Uint8Array, piece = 1 << 20, limits: JsonLimits = JSON_LIMITS): string[] {
  const out: string[] = [];
  const reader = new JsonReader(
    (value) => out.push(writeJson(value)),
    ({ message }) => out.push(`!${message.replace('JSON parse error, ', '')}`),
    limits,
  );
  const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text;
  for (let at = 0; at < bytes.length; at += piece) reader.push(bytes.subarray(at, at + piece));
  return out;
}

function readOne(text: string): Json {
  let found: Json = null;
  const fail = (error: Error): void => assert.fail(error);
  new JsonReader((value) => {
    found = value;
  }, fail).push(new TextEncoder().encode(`${text}\n`));
  return found;
}

describe('JSON of a monitor', () => {
  it('values come out whole, however the bytes are cut', () => {
    const text = `{"a": [1, -2.5e3, true, null, "é\\u00e9\\n"], 'b': {}}\n[] "x" 5 {"a":"\\ud83d\\ude00"}\n`;
    const whole = read(text);
    assert.deepEqual(whole, [
      '{"a": [1, -2500, true, null, "\\u00E9\\u00E9\\n"], "b": {}}',
      '[]',
      '"x"',
      '5',
      '{"a": "\\uD83D\\uDE00"}',
    ]);
    for (const piece of [1, 2, 3, 7]) assert.deepEqual(read(text, piece), whole);
  });

  it('integers of 64 bits stay as they are', () => {
    const exact = ['9007199254740991', '9007199254740993', '-9223372036854775808', '18446744073709551615'];
    assert.deepEqual(read(`[${exact.join(', ')}]`), [`[${exact.join(', ')}]`]);
    assert.ok(readOne('9223372036854775807') instanceof WideInteger);
    assert.equal(readOne('18446744073709551616'), 2 ** 64);
    assert.ok(Object.is(readOne('-0'), 0));
  });

  it('names of object prototypes are names as any other', () => {
    const value = readOne('{"__proto__": {"x": 1}, "constructor": 2, "toString": 3}') as Record<string, Json>;
    assert.deepEqual(Object.keys(value), ['__proto__', 'constructor', 'toString']);
    assert.equal(({} as Record<string, unknown>).x, undefined);
    assert.equal(writeJson(value), '{"__proto__": {"x": 1}, "constructor": 2, "toString": 3}');
    assert.deepEqual(read('{"__proto__": 1, "__proto__": 2}'), ['!duplicate key']);
  });

  // Each as qemu-storage-daemon 7.2 answers it.
  const wrong: readonly (readonly [string | Uint8Array, readonly string[]])[] = [
    ['garbage\n', ["!invalid keyword 'garbage'"]],
    ['{"a" "b"}', ['!missing : in object pair']],
    ['{"a":}', ['!expecting value']],
    ['}', ['!expecting value']],
    ['}}]', ['!expecting value', '!expecting value', '!expecting value']],
    ['{"a":1 2}', ['!expected separator in dict']],
    ['[1 2]', ['!expected separator in list']],
    ['{1:2}', ['!key is not a string in object']],
    ['[}', ['!expecting value']],
    ['{]', ['!expecting value']],
    ['{"a":1]', ['!expected separator in dict']],
    ['{"a":1,}', ['!expecting value']],
    ['[1,]', ['!expecting value']],
    ['{"a":01}', ["!stray '01'", '!expecting value']],
    ['{"a":-}\n', ["!stray '-}'"]],
    ['{"a":1.}\n', ["!stray '1.}'"]],
    ['{"a":1.5e}\n', ["!stray '1.5e}'"]],
    ['{"a":tRue}', ["!stray 'R'", '!expecting value']],
    ['{"a":%d}', ["!stray '%'", '!expecting value']],
    ['"abc\n"passed over"\n', [`!stray '"abc\n'`]],
    ['{"a":"\\ud800"}', ['!\\ud800 is not a valid Unicode character']],
    ['{"a":"\\u12"}', ['!\\u12 is not a valid Unicode character']],
    ['{"a":"\\x"}', ['!invalid escape sequence in string']],
    ['@{"a":1}', ["!stray '@'", '{"a": 1}']],
    ['x {"a":1}', ["!invalid keyword 'x'", '{"a": 1}']],
    ['{"a":"\\uffff"}', ['!\\uffff is not a valid Unicode character']],
    ['{"a":"\\ud83f\\udfff"}', ['!\\ud83f\\udfff is not a valid Unicode character']],
    ['\u0001\u0002', ["!stray '\u0001'", "!stray '\u0002'"]],
    [Uint8Array.of(0x22, 0xef, 0xbf, 0xbf, 0x22), ['!invalid UTF-8 sequence in string']],
    [Uint8Array.of(0x22, 0xc3, 0x22), ['!invalid UTF-8 sequence in string']],
    [Uint8Array.of(0x22, 0xff, 0x22, 0x7d), ["!stray '\"\ufffd'", '!expecting value']],
  ];
  for (const [text, answers] of wrong) {
    it(`${JSON.stringify(typeof text === 'string' ? text : [...text])} is told of, and reading goes on`, () => {
      assert.deepEqual(read(text), answers);
      assert.deepEqual(read(text, 1), answers);
      const after = typeof text === 'string' ? `${text}\n[2]` : Uint8Array.of(...text, 0x0a, 0x5b, 0x32, 0x5d);
      assert.deepEqual(read(after).slice(answers.length), ['[2]']);
    });
  }

  it('too deep, too many tokens and too many bytes are refused once, and do not pile up', () => {
    const limits = { bytes: 64, tokens: 16, depth: 4 };
    assert.deepEqual(read(`${'['.repeat(5)}\n[1]`, 1, limits), ['!JSON nesting depth limit exceeded', '[1]']);
    assert.deepEqual(read(`[${'1,'.repeat(8)}`, 1, limits), ['!JSON token count limit exceeded']);
    assert.deepEqual(read(`["${'x'.repeat(70)}"]\n`, 100, limits)[0], '!JSON token size limit exceeded');
    assert.deepEqual(read(`"${'x'.repeat(70)}\n[1]`, 10, limits), ['!JSON token size limit exceeded', '[1]']);
    assert.deepEqual(read(`${'9'.repeat(1000)}\n[1]`, 10, limits), ['!JSON token size limit exceeded', '[1]']);
  });
});
