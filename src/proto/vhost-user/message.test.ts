import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FrontRequest, HEADER_BYTES, HeaderFlag } from './constants.ts';
import { InflightAt, inflightRegionBytes } from './inflight.ts';
import {
  decodeBits,
  decodeConfigPart,
  decodeHeader,
  decodeInflight,
  decodeLog,
  decodeMemoryTable,
  decodeSingleRegion,
  decodeU64,
  decodeVringAddress,
  decodeVringState,
  encodeBits,
  encodeConfigPart,
  encodeInflight,
  encodeLog,
  encodeMemoryTable,
  encodeMessage,
  encodeSingleRegion,
  encodeU64,
  encodeVringAddress,
  encodeVringState,
} from './message.ts';

const LARGEST = 2 ** 53 - 1;

test('a message has the bytes that the standard says', () => {
  const region = { guest: 0x1_2345_6000, length: 0x4000_0000, user: 0x7f00_1000_0000, offset: 0x2000 };
  const bytes = encodeMessage(FrontRequest.SET_MEM_TABLE, encodeMemoryTable([region]), HeaderFlag.NEED_REPLY);
  const words = [...new Uint32Array(bytes.buffer)];
  assert.deepEqual(words.slice(0, 5), [5, 9, 40, 1, 0]);
  assert.deepEqual(words.slice(5), [0x2345_6000, 1, 0x4000_0000, 0, 0x1000_0000, 0x7f00, 0x2000, 0]);
  assert.deepEqual(decodeHeader(bytes), { request: 5, flags: 9, length: 40 });
  const vring = { index: 3, flags: 1, descriptors: 0x1000, used: 0x2000, available: 0x3000, log: 0x4000 };
  assert.deepEqual(
    [...new Uint32Array(encodeVringAddress(vring).buffer)],
    [3, 1, 0x1000, 0, 0x2000, 0, 0x3000, 0, 0x4000, 0],
  );
});

test('what one side encodes the other decodes', () => {
  const region = (n: number) => ({ guest: LARGEST - n, length: n, user: 2 ** 32 + n, offset: 4096 * n });
  assert.deepEqual(decodeMemoryTable(encodeMemoryTable([1, 2, 3].map(region))), [1, 2, 3].map(region));
  assert.deepEqual(decodeSingleRegion(encodeSingleRegion(region(7))), region(7));
  for (const value of [0, 1, 2 ** 32, LARGEST]) assert.equal(decodeU64(encodeU64(value)), value);
  assert.deepEqual(decodeBits(encodeBits(0xffff_ffff, 1)), { low: 0xffff_ffff, high: 1 });
  const state = { index: 1, value: 65535 };
  assert.deepEqual(decodeVringState(encodeVringState(state)), state);
  const address = { index: 1, flags: 1, descriptors: 2 ** 47, used: LARGEST, available: 16, log: 1 };
  assert.deepEqual(decodeVringAddress(encodeVringAddress(address)), address);
  const area = { length: 8192, offset: 4096, queues: 4, queueSize: 128 };
  assert.deepEqual(decodeInflight(encodeInflight(area)), area);
  const log = { length: 65536, offset: 2 ** 40 };
  assert.deepEqual(decodeLog(encodeLog(log)), log);
  const part = decodeConfigPart(encodeConfigPart(32, Uint8Array.of(1, 2), 1))!;
  assert.deepEqual([part.offset, part.length, part.flags, ...part.bytes], [32, 2, 1, 1, 2]);
});

test('a payload that is cut, or whose count does not fit, or whose number is too large, is none', () => {
  const region = { guest: 1, length: 2, user: 3, offset: 4 };
  const table = encodeMemoryTable([region, region]);
  for (let length = 0; length < table.length; length++) {
    assert.equal(decodeMemoryTable(table.subarray(0, length)), undefined);
  }
  new DataView(table.buffer).setUint32(0, 0x0800_0001, true);
  assert.equal(decodeMemoryTable(table), undefined);
  const part = encodeConfigPart(0, new Uint8Array(4));
  new DataView(part.buffer).setUint32(4, 0xffff_ffff, true);
  assert.equal(decodeConfigPart(part), undefined);
  const huge = new Uint8Array(40).fill(0xff);
  assert.equal(decodeU64(huge), undefined);
  assert.equal(decodeSingleRegion(huge), undefined);
  assert.equal(decodeVringAddress(huge), undefined);
  assert.equal(decodeInflight(huge), undefined);
  assert.equal(decodeLog(huge), undefined);
  for (const decode of [decodeU64, decodeBits, decodeVringState, decodeVringAddress, decodeInflight, decodeLog]) {
    assert.equal(decode(new Uint8Array(7)), undefined);
  }
  assert.equal(HEADER_BYTES, 12);
});

test('the regions of requests in flight lie on cache lines of their own', () => {
  assert.equal(inflightRegionBytes(128, false), 2112);
  assert.equal(inflightRegionBytes(1, false) % 64, 0);
  assert.equal(InflightAt.DESCRIPTORS, 16);
});
