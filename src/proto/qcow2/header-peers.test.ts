import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { needs, peer, run, scratch } from '../../../test/harness.ts';
import { BlockError } from '../../base/errors.ts';
import { GiB, KiB } from '../../base/units.ts';
import { Crypt, ExtensionType, Incompatible } from './constants.ts';
import { defaultFeatureNames } from './features.ts';
import { clusterSizeOf, encodeHeader, parseHeader, type Qcow2Header } from './header.ts';
import { backingFormat, bitmapsExtension, dataFileName, encryptionExtension, extension } from './header-extensions.ts';

const CLUSTER = 64 * KiB;

describe('qcow2 header: images made by qemu-img', () => {
  const secret = ['--object', 'secret,id=s,data=abc'];
  const luks = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
  /** Options, and what the header must say. Each header is also written again, byte for byte. */
  const images: readonly [string, (header: Qcow2Header) => unknown, unknown][] = [
    ['compat=0.10', (h) => [h.version, h.refcountOrder, h.incompatible], [2, 4, 0]],
    ['compat=1.1', (h) => [h.version, h.size, h.l1Size], [3, GiB, 2]],
    ['compat=1.1', (h) => extension(h, ExtensionType.FEATURE_NAMES), defaultFeatureNames()],
    ['cluster_size=512', (h) => [h.clusterBits, h.l1Size], [9, 32_768]],
    ['cluster_size=2M', (h) => h.clusterBits, 21],
    ['refcount_bits=1', (h) => h.refcountOrder, 0],
    ['refcount_bits=64', (h) => h.refcountOrder, 6],
    ['lazy_refcounts=on', (h) => h.compatible, 1n],
    ['extended_l2=on,cluster_size=16k', (h) => [h.clusterBits, h.incompatible], [14, Incompatible.EXTENDED_L2]],
    ['compression_type=zstd', (h) => [h.compressionType, h.incompatible], [1, Incompatible.COMPRESSION]],
    ['data_file=DIR/d.raw', (h) => dataFileName(h)?.endsWith('/d.raw'), true],
    ['data_file=DIR/e.raw,data_file_raw=on', (h) => [h.incompatible, h.autoclear], [Incompatible.DATA_FILE, 2n]],
    ['compat=0.10,backing_file=DIR/b,backing_fmt=raw', (h) => [h.backingFile?.at(-1), backingFormat(h)], ['b', 'raw']],
    ['backing_file=DIR/b,backing_fmt=raw', (h) => [h.backingFile?.at(-1), backingFormat(h)], ['b', 'raw']],
    [luks, (h) => [h.cryptMethod, (encryptionExtension(h)?.length ?? 0) > 592], [Crypt.LUKS, true]],
  ];

  for (const [options, facts, expected] of images) {
    it(options, needs('qemu-img'), async (t) => {
      const folder = scratch(t);
      const path = join(folder, 'x.qcow2');
      await peer('qemu-img', 'create', '-q', '-f', 'raw', join(folder, 'b'), '1G');
      const more = options.includes('secret') ? secret : [];
      await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...more, '-o', options.replace('DIR', folder), path, '1G');
      const file = readFileSync(path);
      const header = parseHeader(file.subarray(0, clusterSizeOf(file)), file.length);
      assert.deepEqual(facts(header), expected);
      const written = encodeHeader(header);
      assert.deepEqual(written, new Uint8Array(file.subarray(0, written.length)));
    });
  }

  it('snapshots, bitmaps, and a disk of no bytes', needs('qemu-img'), async (t) => {
    const path = join(scratch(t), 'x.qcow2');
    const read = (): Qcow2Header => parseHeader(readFileSync(path).subarray(0, CLUSTER), statSync(path).size);
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '0');
    assert.deepEqual([read().size, read().l1Size], [0, 0]);
    await peer('qemu-img', 'resize', '-q', path, '1M');
    await peer('qemu-img', 'snapshot', '-c', 'one', path);
    await peer('qemu-img', 'bitmap', '--add', path, 'b0');
    const header = read();
    assert.equal(header.snapshotCount, 1);
    assert.equal(bitmapsExtension(header)?.count, 1);
    assert.deepEqual(encodeHeader(header), new Uint8Array(readFileSync(path).subarray(0, encodeHeader(header).length)));
  });

  it('an image that we refuse is refused by qemu-img too', needs('qemu-img'), async (t) => {
    const path = join(scratch(t), 'x.qcow2');
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, '1G');
    const good = readFileSync(path);
    const pokes: readonly [number, number][] = [
      [4, 4],
      [20, 8],
      [20, 22],
      [32, 3],
      [36, 1],
      [36, 0x7fff_ffff],
      [44, 0x3_0001],
      [52, 0x1_0200],
      [56, 0],
      [56, 0xffff_ffff],
      [60, 0x7fff_ffff],
      [76, 0x40],
      [96, 7],
      [100, 0x7fff_ffff],
      [104, 0x0200_0000],
      [116, 0x7fff_ffff],
    ];
    for (const [at, value] of pokes) {
      const bytes = new Uint8Array(good);
      new DataView(bytes.buffer).setUint32(at, value);
      assert.throws(() => parseHeader(bytes.subarray(0, CLUSTER), bytes.length), BlockError, `at ${at}`);
      writeFileSync(path, bytes);
      const { code } = await run('qemu-img', ['info', path]);
      assert.equal(code, 1, `at ${at}`);
    }
  });
});
