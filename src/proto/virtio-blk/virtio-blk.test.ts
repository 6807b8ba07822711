import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Memory } from '../../base/memory.ts';
import { decodeBlkConfig, encodeBlkConfig } from './config.ts';
import { PackedDriver } from './packed-driver.ts';
import { isAvailable, isUsed, PackedFlag, packedParts, withWrap } from './packed-ring.ts';
import { SplitDriver, splitParts } from './split-driver.ts';
import { AVAIL_HEADS, availBytes, DescriptorFlag, passedEvent, usedBytes } from './split-ring.ts';

function memoryOf(length: number): Memory {
  const bytes = new Uint8Array(length);
  return { bytes, view: new DataView(bytes.buffer), address: 0 };
}

test('the configuration space has its fields where the standard has them', () => {
  const config = {
    ...{ capacity: 2 ** 40 + 5, sizeMax: 65536, segMax: 126, blockBytes: 4096, physicalBlockExponent: 2 },
    ...{ optimalBlocks: 8, writeback: true, queues: 3, maxDiscardSectors: 99, discardAlignmentSectors: 8 },
    ...{ maxZeroSectors: 77, zeroMayUnmap: true },
  };
  const bytes = encodeBlkConfig(config);
  const view = new DataView(bytes.buffer);
  assert.deepEqual([view.getUint32(0, true), view.getUint32(4, true)], [5, 256]);
  assert.deepEqual(
    [12, 20, 28, 36, 48].map((at) => view.getUint32(at, true)),
    [126, 4096, 8, 99, 77],
  );
  assert.deepEqual([bytes[24], bytes[32], bytes[34], bytes[56], bytes.length], [2, 1, 3, 1, 60]);
  assert.deepEqual(decodeBlkConfig(bytes), config);
});

test('an event is passed when it lies between the index before and the index now, also around the end', () => {
  for (const [event, now, before, passed] of [
    [0, 1, 0, true],
    [1, 1, 0, false],
    [5, 10, 3, true],
    [2, 10, 3, false],
    [9, 10, 3, true],
    [10, 10, 3, false],
    [65535, 2, 65530, true],
    [1, 2, 65530, true],
    [2, 2, 65530, false],
    [0, 0, 0, false],
  ] as const) {
    assert.equal(passedEvent(event, now, before), passed, `${event} ${now} ${before}`);
  }
});

test('the driver of a split ring makes chains available in order and has its descriptors back', () => {
  const size = 8;
  const { avail, used, bytes } = splitParts(size);
  assert.deepEqual([avail, used, bytes], [128, 4096, 4096 + usedBytes(size)]);
  assert.equal(availBytes(size), 22);
  const memory = memoryOf(bytes);
  const driver = new SplitDriver(memory, 0, size, true);
  const chain = (): number => {
    driver.add(2 ** 32 + 4096, 16, false);
    driver.add(8192, 512, true);
    return driver.end();
  };
  for (let round = 0; round < 70_000; round++) {
    const heads = [chain(), chain()];
    assert.equal(driver.room, size - 4);
    // The device wants to be told of the next one only.
    const before = (2 * round) & 0xffff;
    Atomics.store(driver.used, 2 + 4 * size, before);
    assert.equal(driver.publish(), true);
    assert.equal(driver.publish(), false);
    assert.equal(driver.avail[1], (2 * round + 2) & 0xffff);
    assert.equal(driver.avail[AVAIL_HEADS + (before % size)], heads[0]);
    assert.equal(driver.hasUsed, false);
    // The other way round.
    driver.usedWords[1 + 2 * (before % size)] = heads[1]!;
    driver.usedWords[1 + 2 * ((before + 1) % size)] = heads[0]!;
    Atomics.store(driver.used, 1, (before + 2) & 0xffff);
    assert.deepEqual([driver.collect(), driver.collect(), driver.collect()], [heads[1], heads[0], -1]);
    assert.equal(driver.room, size);
  }
  const head = chain();
  const words = driver.descriptors.subarray(head * 4, head * 4 + 4);
  assert.deepEqual([...words.subarray(0, 3)], [4096, 1, 16]);
  assert.equal(words[3]! & 0xffff, DescriptorFlag.NEXT);
  assert.equal(driver.descriptors[(words[3]! >>> 16) * 4 + 3], DescriptorFlag.WRITE);
});

test('the driver of a packed ring shows the first descriptor of a batch last, and has its descriptors back', () => {
  const size = 8;
  const { device, bytes } = packedParts(size);
  const memory = memoryOf(bytes);
  const driver = new PackedDriver(memory, 0, size, true);
  const words = new Uint16Array(memory.bytes.buffer);
  const flagsOf = (index: number): number => words[index * 8 + 7]!;
  let [index, wrap] = [0, 1];
  for (let round = 0; round < 1000; round++) {
    driver.add(4096, 16, false);
    driver.add(8192, 512, true);
    const first = driver.end();
    driver.add(4096, 16, true);
    const second = driver.end();
    assert.equal(driver.room, size - 3);
    assert.equal(isAvailable(flagsOf(index), wrap), false);
    // The device wants to be told of the second chain only.
    const told = (index + 2) % size;
    const toldWrap = index + 2 >= size ? wrap ^ 1 : wrap;
    memory.view.setUint16(device, withWrap(told, toldWrap), true);
    memory.view.setUint16(device + 2, 2, true);
    assert.equal(driver.publish(), true, `round ${round}`);
    assert.equal(driver.publish(), false);
    for (let i = 0; i < 3; i++) {
      const at = (index + i) % size;
      assert.equal(isAvailable(flagsOf(at), index + i >= size ? wrap ^ 1 : wrap), true, `round ${round} at ${at}`);
    }
    assert.equal(words[((index + 1) % size) * 8 + 6], first);
    assert.equal(words[told * 8 + 6], second);
    // The second is used first: one element each, at the places where chains of that length would begin.
    const use = (id: number, slots: number): void => {
      assert.equal(driver.hasUsed, false);
      words[index * 8 + 6] = id;
      words[index * 8 + 7] = wrap === 1 ? PackedFlag.AVAIL | PackedFlag.USED : 0;
      assert.equal(isUsed(flagsOf(index), wrap), true);
      index += slots;
      if (index >= size) [index, wrap] = [index - size, wrap ^ 1];
      assert.equal(driver.collect(), id);
      assert.equal(driver.collect(), -1);
    };
    use(second, 1);
    use(first, 2);
    assert.equal(driver.room, size);
  }
});
