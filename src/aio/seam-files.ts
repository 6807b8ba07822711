/** The seam's conformance suite, part 1: files. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { BlockError, Errno } from '../base/errors.ts';
import { Iov } from '../base/memory.ts';
import { GiB, KiB, MiB } from '../base/units.ts';
import type { AioFile } from './backend.ts';
import { closeAll, type DefineTest, type Seam, SeenOp, wait } from './seam-harness.ts';

const errorCode = (code: string) => (error: unknown) => {
  assert.ok(error instanceof BlockError, String(error));
  assert.equal(error.code, code);
  return true;
};

export function fileConformance(test: DefineTest): void {
  transfers(test);
  operations(test);
  operationsAgain(test);
  sizesAndHoles(test);
  allocation(test);
  opening(test);
  directAndLocks(test);
}

function transfers(test: DefineTest): void {
  test('what was written at odd offsets is read back, and nothing around it changes', async (seam) => {
    const file = await seam.create('f');
    const data = seam.memory(10_007, 3);
    await seam.writeAll(file, Iov.of(data), 12_345);
    assert.deepEqual(await seam.bytes(file, 12_345, 10_007), data.bytes.slice());
    assert.ok((await seam.bytes(file, 0, 12_345)).every((byte) => byte === 0));
    await seam.writeAll(file, Iov.of(seam.memory(3, 100)), 13_001);
    const after = await seam.bytes(file, 12_345, 10_007);
    data.bytes.set(seam.memory(3, 100).bytes, 13_001 - 12_345);
    assert.deepEqual(after, data.bytes.slice());
    await file.close();
  });

  for (const at of [2 * GiB - 5, 4 * GiB - 3, 6 * GiB + 1]) {
    test(`offset ${at} is exact`, async (seam) => {
      const file = await seam.create('big');
      const data = seam.memory(11, 9);
      await seam.writeAll(file, Iov.of(data), at);
      assert.equal((await file.stat()).size, at + 11);
      assert.deepEqual(await seam.bytes(file, at, 20), data.bytes.slice());
      assert.deepEqual(await seam.bytes(file, at - 4, 5), new Uint8Array([0, 0, 0, 0, data.bytes[0]!]));
      await file.close();
    });
  }

  test('what is read at once is what was written, at its place only, and all of it', async (seam) => {
    const file = await seam.create('f');
    const data = seam.memory(10_007, 3);
    await seam.writeAll(file, Iov.of(data), 0);
    const into = seam.memory(5000, 200);
    const before = into.bytes.slice();
    assert.equal(file.readNow?.(9000, into, 0, 5000) ?? false, false, 'all or nothing');
    if (!(file.readNow?.(5001, into, 300, 4000) ?? false)) return;
    before.set(data.bytes.subarray(5001, 9001), 300);
    assert.deepEqual(into.bytes.slice(300, 4300), before.slice(300, 4300));
    assert.deepEqual(into.bytes.slice(4300), before.slice(4300));
  });

  test('an iov of many runs is written and read in order, within its runs only', async (seam) => {
    const file = await seam.create('f');
    const source = seam.memory(4096, 17);
    const out = new Iov().push(source, 100, 1).push(source, 7, 1000).push(source, 2000, 33).push(source, 0, 512);
    await seam.writeAll(file, out, 5);
    const target = seam.memory(4096);
    const into = new Iov().push(target, 10, 700).push(target, 1000, 46).push(target, 2000, 800);
    assert.equal(await seam.readAll(file, into, 5), 1546);
    const expected = new Uint8Array(1546);
    out.copyTo(expected);
    const got = new Uint8Array(1546);
    into.copyTo(got);
    assert.deepEqual(got, expected);
    assert.equal(target.bytes[710], 0);
    assert.equal(target.bytes[9], 0);
    assert.equal(target.bytes[1046], 0);
    await file.close();
  });

  test('an iov of 1024 runs goes through', async (seam) => {
    const file = await seam.create('f');
    const source = seam.memory(64 * KiB, 1);
    const iov = new Iov();
    for (let i = 0; i < 1024; i++) iov.push(source, i * 64, 63);
    await seam.writeAll(file, iov, 0);
    const expected = new Uint8Array(iov.length);
    iov.copyTo(expected);
    assert.deepEqual(await seam.bytes(file, 0, iov.length), expected);
    await file.close();
  });
}

function operations(test: DefineTest): void {
  test('a read at the end gives 0, one across it is short', async (seam) => {
    const file = await seam.create('f');
    await seam.writeAll(file, Iov.of(seam.memory(1000, 5)), 0);
    const memory = seam.memory(4096);
    assert.equal(await wait((op) => file.read(op, Iov.of(memory), 1000)), 0);
    assert.equal(await wait((op) => file.read(op, Iov.of(memory), 1_000_000)), 0);
    assert.equal(await seam.readAll(file, Iov.of(memory), 400), 600);
    assert.deepEqual(memory.bytes.slice(0, 600), seam.memory(1000, 5).bytes.slice(400));
    assert.equal(memory.bytes[600], 0);
    await file.close();
  });

  test('200 operations at once all end, once each, with their own data', async (seam) => {
    const file = await seam.create('f');
    const blocks = Array.from({ length: 200 }, (_, i) => seam.memory(4096, i));
    await Promise.all(blocks.map((block, i) => seam.writeAll(file, Iov.of(block), i * 4096)));
    const results = await Promise.all(blocks.map((_, i) => seam.bytes(file, i * 4096, 4096)));
    for (const [i, bytes] of results.entries()) assert.deepEqual(bytes, blocks[i]!.bytes.slice(), `block ${i}`);
    await file.close();
  });

  test('no operation completes inside the call that starts it, and each completes exactly once', async (seam) => {
    const file = await seam.create('f');
    const memory = seam.memory(512, 1);
    const starts: ((op: SeenOp) => void)[] = [
      (op) => file.write(op, Iov.of(memory), 0, false),
      (op) => file.read(op, Iov.of(memory), 0),
      (op) => file.read(op, new Iov(), 0),
      (op) => file.datasync(op),
      (op) => file.allocate(op, 'allocate', 0, 4096),
    ];
    const ops = starts.map((start) => {
      const op = new SeenOp();
      start(op);
      assert.deepEqual(op.results, []);
      return op;
    });
    for (const op of ops) await op.result();
    for (let i = 0; i < 5; i++) await seam.context.yield();
    for (const op of ops) {
      assert.equal(op.results.length, 1);
      assert.equal(op.slot, -1, 'an operation that has ended is at rest');
    }
    await file.close();
  });
}

function operationsAgain(test: DefineTest): void {
  test('a FIFO is refused at once, and nothing waits for its other end', async (seam) => {
    if (seam.backend.name === 'sim') return;
    const path = seam.path('fifo');
    execFileSync('mkfifo', [path]);
    await assert.rejects(seam.backend.openFile(path, { writable: false }), { code: 'ENOTSUP' });
  });

  test('an operation can be given away again from its own completion', async (seam) => {
    const file = await seam.create('f');
    const memory = seam.memory(512, 1);
    const op = new (class extends SeenOp {
      override complete(result: number): void {
        super.complete(result);
        if (this.results.length < 5) file.write(this, Iov.of(memory), this.results.length * 512, false);
      }
    })();
    file.write(op, Iov.of(memory), 0, false);
    while (op.results.length < 5) await seam.context.yield();
    assert.deepEqual(op.results, [512, 512, 512, 512, 512]);
    assert.equal((await file.stat()).size, 2560);
    await file.close();
  });

  test('an operation given away twice is a bug that is seen', async (seam) => {
    const file = await seam.create('f');
    const op = new SeenOp();
    file.datasync(op);
    assert.throws(() => file.datasync(op), { name: 'Bug' });
    await op.result();
    await file.close();
  });

  test('datasync gives 0, and a durable write its length where there are such', async (seam) => {
    const file = await seam.create('f');
    await seam.writeAll(file, Iov.of(seam.memory(4096, 1)), 0);
    assert.equal(await wait((op) => file.datasync(op)), 0);
    if (file.nativeFua) {
      assert.equal(await wait((op) => file.write(op, Iov.of(seam.memory(4096, 2)), 4096, true)), 4096);
    } else {
      seam.t.diagnostic('this backend has no durable writes');
    }
    await file.close();
  });

  test('a write to a file that is open for reading only fails with EBADF', async (seam) => {
    const made = await seam.create('f');
    const file = await seam.backend.openFile(seam.path('f'), { writable: false });
    assert.equal(await wait((op) => file.write(op, Iov.of(seam.memory(10, 1)), 0, false)), -Errno.EBADF);
    await closeAll(file, made);
  });
}

async function sparseFile(seam: Seam): Promise<AioFile> {
  const file = await seam.create('sparse');
  await seam.writeAll(file, Iov.of(seam.memory(64 * KiB, 1)), 0);
  await seam.writeAll(file, Iov.of(seam.memory(64 * KiB, 2)), MiB);
  await file.truncate(2 * MiB);
  return file;
}

function sizesAndHoles(test: DefineTest): void {
  test('truncate grows with zeroes and cuts off', async (seam) => {
    const file = await seam.create('f');
    await seam.writeAll(file, Iov.of(seam.memory(1000, 1)), 0);
    await file.truncate(500);
    await file.truncate(2000);
    const { size, kind } = await file.stat();
    assert.deepEqual({ size, kind }, { size: 2000, kind: 'file' });
    const bytes = await seam.bytes(file, 0, 3000);
    assert.equal(bytes.length, 2000);
    assert.deepEqual(bytes.slice(0, 500), seam.memory(1000, 1).bytes.slice(0, 500));
    assert.ok(bytes.subarray(500).every((byte) => byte === 0));
    await file.close();
  });

  test('extents cover a sparse file: data is never called a hole', async (seam) => {
    const file = await sparseFile(seam);
    const extents: [number, number][] = [];
    for (let at = 0; ; ) {
      const extent = file.extent(at, 8 * MiB);
      if (extent === 0) break;
      extents.push([at, extent]);
      at += Math.abs(extent);
      assert.ok(extents.length < 100);
    }
    const end = extents.at(-1)!;
    assert.equal(end[0] + Math.abs(end[1]), 2 * MiB, 'the extents end where the file does');
    assert.equal(file.extent(2 * MiB, 100), 0);
    assert.equal(file.extent(5 * MiB, 100), 0);
    assert.equal(file.extent(0, 1000), 1000, 'the limit holds');
    for (const at of [0, 64 * KiB - 1, MiB, MiB + 64 * KiB - 1]) {
      assert.ok(file.extent(at, 1) > 0, `byte ${at} is data`);
    }
    if (extents.length === 1) seam.t.diagnostic('holes are not visible here');
    else assert.ok(file.extent(512 * KiB, 1000) === -1000 && file.extent(2 * MiB - 10, 1000) === -10);
    assert.equal((await file.stat()).allocated < 2 * MiB || extents.length === 1, true);
    await file.close();
  });
}

function allocation(test: DefineTest): void {
  for (const mode of ['punch', 'zero'] as const) {
    test(`${mode}: the range reads as zeroes, the rest stays, so does the size`, async (seam) => {
      const file = await sparseFile(seam);
      const result = await wait((op) => file.allocate(op, mode, 4096, 8192));
      if (result === -Errno.ENOTSUP) {
        seam.t.diagnostic('not supported here');
      } else {
        assert.ok(file.canAllocate);
        assert.equal(result, 0);
        const expected = seam.memory(64 * KiB, 1).bytes.slice();
        expected.fill(0, 4096, 12_288);
        assert.deepEqual(await seam.bytes(file, 0, 64 * KiB), expected);
        assert.equal(await wait((op) => file.allocate(op, mode, 2 * MiB - 4096, 1 * MiB)), 0);
        assert.equal((await file.stat()).size, 2 * MiB);
      }
      await file.close();
    });
  }

  test('allocate grows a file, keeps its data, and -ENOTSUP is the only other answer', async (seam) => {
    const file = await sparseFile(seam);
    const result = await wait((op) => file.allocate(op, 'allocate', 0, 3 * MiB));
    if (result === -Errno.ENOTSUP) {
      seam.t.diagnostic('not supported here');
    } else {
      assert.equal(result, 0);
      assert.equal((await file.stat()).size, 3 * MiB);
      assert.deepEqual(await seam.bytes(file, MiB, 64 * KiB), seam.memory(64 * KiB, 2).bytes.slice());
    }
    await file.close();
  });
}

function opening(test: DefineTest): void {
  test('open fails with the errno for what is missing, there already, or a directory', async (seam) => {
    const { backend } = seam;
    await closeAll(await seam.create('f'));
    await assert.rejects(backend.openFile(seam.path('none'), { writable: false }), errorCode('ENOENT'));
    await assert.rejects(backend.openFile(seam.folder, { writable: false }), errorCode('EISDIR'));
    await assert.rejects(backend.openFile(seam.folder, { writable: true }), errorCode('EISDIR'));
    const exclusive = { writable: true, create: true, exclusive: true };
    await assert.rejects(backend.openFile(seam.path('f'), exclusive), errorCode('EEXIST'));
    await assert.rejects(
      backend.openFile(seam.path('none'), { writable: false }),
      /Could not open '.*none': No such file/,
    );
  });

  test('open with truncate empties a file; its identity stays', async (seam) => {
    const file = await seam.create('f');
    await seam.writeAll(file, Iov.of(seam.memory(1000, 1)), 0);
    const again = await seam.backend.openFile(seam.path('f'), { writable: true, create: true, truncate: true });
    const [a, b] = [await file.stat(), await again.stat()];
    assert.equal(b.size, 0);
    assert.deepEqual([a.dev, a.ino], [b.dev, b.ino]);
    await closeAll(file, again);
  });
}

function directAndLocks(test: DefineTest): void {
  test('direct I/O states its alignment and works within it', async (seam) => {
    await closeAll(await seam.create('f'));
    let file: AioFile;
    try {
      file = await seam.backend.openFile(seam.path('f'), { writable: true, direct: true });
    } catch (error) {
      errorCode('EINVAL')(error);
      seam.t.diagnostic('the file system of the temporary folder has no direct I/O');
      return;
    }
    const { alignment } = await file.stat();
    assert.ok(alignment >= 512 && Number.isInteger(Math.log2(alignment)), `alignment ${alignment}`);
    const room = seam.memory(3 * 4096);
    const start = room.address === 0 ? 0 : (4096 - (room.address % 4096)) % 4096;
    const iov = Iov.of(room, start, 4096);
    iov.fill(7);
    const written = await wait((op) => file.write(op, iov, 4096, false));
    if (room.address === 0 && written === -Errno.EINVAL) seam.t.diagnostic('memory is not aligned here');
    else assert.equal(written, 4096);
    await file.close();
  });

  test('an open file becomes direct, and buffered again, with its locks', async (seam) => {
    const file = await seam.create('f');
    const other = await seam.backend.openFile(seam.path('f'), { writable: true });
    const data = seam.memory(8192, 5);
    await seam.writeAll(file, Iov.of(data), 0);
    assert.ok(await file.lock('read', 100, 1));
    try {
      file.setDirect(true);
    } catch (error) {
      assert.ok(error instanceof BlockError && /EINVAL|ENOTSUP/.test(error.code), String(error));
      seam.t.diagnostic('the file system of the temporary folder, or the backend, has no direct I/O');
      assert.equal((await file.stat()).alignment, 1);
      await closeAll(file, other);
      return;
    }
    assert.ok((await file.stat()).alignment >= 512);
    assert.equal((await other.stat()).alignment, 1, 'another open file');
    file.setDirect(false);
    assert.equal((await file.stat()).alignment, 1);
    assert.equal(await other.testLock('write', 100, 1), file.canLock);
    assert.deepEqual(await seam.bytes(file, 77, 100), data.bytes.slice(77, 177));
    await closeAll(file, other);
  });

  test('locks of two opens of a file exclude each other, byte by byte', async (seam) => {
    const a = await seam.create('f');
    const b = await seam.create('f');
    if (!a.canLock) {
      seam.t.diagnostic('no locks here');
      assert.equal(await a.lock('write', 0, 10), true);
      assert.equal(await b.testLock('write', 0, 10), false);
      await closeAll(a, b);
      return;
    }
    assert.equal(await a.lock('write', 100, 2), true);
    assert.equal(await b.lock('read', 101, 1), false);
    assert.equal(await b.lock('write', 102, 1), true);
    assert.equal(await b.testLock('read', 100, 1), true);
    assert.equal(await a.testLock('write', 100, 2), false, 'own locks do not conflict');
    assert.equal(await a.lock('read', 100, 2), true, 'a lock is changed in place');
    assert.equal(await b.lock('read', 100, 1), true);
    assert.equal(await a.lock('write', 100, 1), false);
    assert.equal(await a.lock('none', 100, 2), true);
    assert.equal(await b.lock('write', 100, 2), true);
    await b.close();
    assert.equal(await a.testLock('write', 100, 2), false, 'closing gives locks back');
    await a.close();
  });
}
