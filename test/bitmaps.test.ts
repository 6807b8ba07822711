/** Dirty bitmaps as programs and NBD clients see them; QEMU and libnbd say what is right. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { type BlockError, customNode, type DirtyExtent, type Disk, open, serveNbd } from '../src/index.ts';
import { blockplane, needs, needsPythonNbd, peer, python, scratch, serve, sparse } from './harness.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 64 * MiB;

function code(expected: string): (error: BlockError) => boolean {
  return (error) => {
    assert.equal(error.code, expected, error.message);
    return true;
  };
}

async function image(t: TestContext): Promise<string> {
  const path = `${scratch(t)}/disk.qcow2`;
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path, String(SIZE));
  return path;
}

function openQcow2(filename: string, more: Record<string, unknown> = {}): Promise<Disk> {
  return open(customNode({ driver: 'qcow2', ...more, file: { driver: 'file', filename } }));
}

async function dirtyOf(disk: Disk, name: string): Promise<string> {
  const found: DirtyExtent[] = [];
  for await (const extent of disk.bitmaps.extents(name)) found.push(extent);
  return text(found);
}

function text(extents: readonly DirtyExtent[]): string {
  return extents.map(({ offset, length, dirty }) => `${offset}+${length} ${dirty ? 'dirty' : 'clean'}`).join(', ');
}

/** What an NBD server says of a bitmap; neighbours of a kind joined, as answers may be cut anywhere. */
async function mapOf(name: string, ...server: string[]): Promise<string> {
  const json = await peer('nbdinfo', `--map=qemu:dirty-bitmap:${name}`, '--json', ...server);
  const found: { offset: number; length: number; dirty: boolean }[] = [];
  for (const { offset, length, type } of JSON.parse(json) as { offset: number; length: number; type: number }[]) {
    const last = found.at(-1);
    if (last?.dirty === (type === 1)) last.length += length;
    else found.push({ offset, length, dirty: type === 1 });
  }
  return text(found);
}

function peerMap(path: string, name: string): Promise<string> {
  return mapOf(name, '--', '[', 'qemu-nbd', '-r', '-f', 'qcow2', '-B', name, path, ']');
}

async function write(disk: Disk, at: number, length: number): Promise<void> {
  await disk.write(new Uint8Array(length).fill(1), 0, length, at);
}

const PEERS = needs('qemu-img', 'qemu-nbd', 'nbdinfo');

test('a program makes, changes and reads bitmaps, and QEMU finds them', PEERS, async (t) => {
  const path = await image(t);
  const disk = await openQcow2(path);
  const { bitmaps } = disk;
  await bitmaps.add('kept', { persistent: true, granularity: 4096 });
  await bitmaps.add('passing', { disabled: true });
  await assert.rejects(bitmaps.add('kept'), code('EEXIST'));
  await assert.rejects(bitmaps.add('odd', { granularity: 1000 }), code('EINVAL'));
  await assert.rejects(bitmaps.remove('none'), code('ENOENT'));
  await write(disk, 10_000, 10);
  await bitmaps.enable('passing');
  await write(disk, MiB, 10);
  await bitmaps.disable('passing');
  await write(disk, 2 * MiB, 10);
  assert.equal(await dirtyOf(disk, 'passing'), `0+${MiB} clean, ${MiB}+65536 dirty, 1114112+${SIZE - 1114112} clean`);
  const state = { persistent: true, inconsistent: false, busy: false };
  assert.deepEqual(await bitmaps.list(), [
    { ...state, name: 'kept', granularity: 4096, enabled: true, dirty: 3 * 4096 },
    { ...state, name: 'passing', granularity: 65_536, enabled: false, persistent: false, dirty: 65_536 },
  ]);
  await bitmaps.clear('kept');
  await bitmaps.merge('kept', ['passing']);
  const part: DirtyExtent[] = [];
  for await (const extent of bitmaps.extents('kept', MiB + 100, 65_536)) part.push(extent);
  assert.equal(text(part), `${MiB + 100}+65436 dirty, 1114112+100 clean`);
  const kept = await dirtyOf(disk, 'kept');
  await disk.close();
  assert.equal(await peerMap(path, 'kept'), kept);
  const again = await openQcow2(path);
  await again.bitmaps.remove('kept');
  assert.deepEqual(await again.bitmaps.list(), []);
  await again.close();
  await peer('qemu-img', 'check', '-q', path);
});

test('NBD clients see the bitmaps of an export as QEMU shows them', PEERS, async (t) => {
  const path = await image(t);
  await peer('qemu-img', 'bitmap', '--add', '-g', '512', path, 'fine');
  const writes = Array.from({ length: 60 }, (_, i) => ['-c', `write ${i * 7 * 512 + (i % 9) * 100_000}  512`]);
  await peer('qemu-io', ...writes.flat(), path);
  await peer('qemu-img', 'bitmap', '--add', '-g', '1M', path, 'coarse');
  await peer('qemu-io', '-c', `write ${SIZE - 512} 512`, path);
  const theirs = { fine: await peerMap(path, 'fine'), coarse: await peerMap(path, 'coarse') };
  await using disk = await openQcow2(path, { 'read-only': true });
  await using service = await serveNbd(disk, { bitmaps: ['fine', 'coarse'] });
  assert.equal(await mapOf('fine', service.uri), theirs.fine);
  assert.equal(await mapOf('coarse', service.uri), theirs.coarse);
  const list = await peer('nbdinfo', '--list', service.uri);
  assert.match(list, /qemu:dirty-bitmap:fine\n\s+qemu:dirty-bitmap:coarse/);
  assert.equal((await disk.bitmaps.list())[0]!.busy, true);
});

test('one request asks for all contexts, in more extents than an answer holds', needsPythonNbd(), async (t) => {
  const path = await image(t);
  await using disk = await openQcow2(path);
  await disk.bitmaps.add('many', { granularity: 512 });
  await disk.bitmaps.add('none', { granularity: 512, disabled: true });
  for (let at = 0; at < 8 * MiB; at += 64 * KiB) await write(disk, at, 512);
  await disk.bitmaps.add('more', { granularity: 512 });
  const last = 3000;
  for (let i = 0; i < last; i += 2) await write(disk, i * 512, 1);
  await using service = await serveNbd(disk, { bitmaps: ['many', 'none', 'more'] });
  const out = await python(`
import nbd
h = nbd.NBD()
names = ["base:allocation"] + ["qemu:dirty-bitmap:" + n for n in ("many", "none", "more")]
for n in names: h.add_meta_context(n)
h.connect_uri("${service.uri}")
runs = {}
at = 0
while at < ${SIZE}:
    got = {}
    def extents(context, offset, entries, error):
        got[context] = entries
    h.block_status(${SIZE} - at, at, extents)
    assert set(got) == set(names), got.keys()
    for name in names[1:]:
        runs.setdefault(name, [])
        where = at
        for length, flags in zip(got[name][::2], got[name][1::2]):
            if where >= len(runs[name]) * 512:
                first = len(runs[name])
                runs[name] += [flags] * ((where + length) // 512 - first)
            where += length
    at = min(len(r) for r in runs.values()) * 512
def dirty(name): return [i for i, f in enumerate(runs["qemu:dirty-bitmap:" + name]) if f]
many = set(i * 128 for i in range(128)) | set(range(0, ${last}, 2))
assert dirty("many") == sorted(many), len(dirty("many"))
assert dirty("none") == []
assert dirty("more") == list(range(0, ${last}, 2))
one = {}
h.block_status(4096, 0, lambda c, o, e, err: one.update({c: e}), nbd.CMD_FLAG_REQ_ONE)
assert one["qemu:dirty-bitmap:more"] == [512, 1], one
print("ok")
`);
  assert.equal(out.stdout, 'ok\n', out.stderr);
});

test(
  'exported bitmaps stay as they are but for writes, and settled ones only are shown read-only',
  PEERS,
  async (t) => {
    const path = await image(t);
    await using disk = await openQcow2(path);
    await disk.bitmaps.add('b', { granularity: 512 });
    await assert.rejects(serveNbd(disk, { bitmaps: ['none'] }), code('ENOENT'));
    await assert.rejects(serveNbd(disk, { bitmaps: ['b'], readOnly: true }), code('EINVAL'));
    await assert.rejects(serveNbd(disk, { bitmaps: ['b', 'b'] }), code('EINVAL'));
    await disk.bitmaps.clear('b');
    const service = await serveNbd(disk, { bitmaps: ['b'] });
    await assert.rejects(service.addExport({ disk, bitmaps: ['b'] }), code('EEXIST'));
    await assert.rejects(disk.bitmaps.remove('b'), code('EBUSY'));
    await peer('qemu-io', '-f', 'raw', '-c', 'write 0 512', service.uri);
    assert.equal(await mapOf('b', service.uri), `0+512 dirty, 512+${SIZE - 512} clean`);
    await service.stop();
    await disk.bitmaps.disable('b');
    await using settled = await serveNbd(disk, { bitmaps: ['b'], readOnly: true });
    assert.equal(await mapOf('b', settled.uri), `0+512 dirty, 512+${SIZE - 512} clean`);
    await settled.removeExport('');
    await disk.bitmaps.remove('b');
  },
);

test('serve --bitmap shows a bitmap, and what clients write is in it when it is stored', PEERS, async (t) => {
  const path = await image(t);
  await peer('qemu-img', 'bitmap', '--add', path, 'b0');
  const served = await serve(t, ['-B', 'b0', path]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write 1M 64k', served.uri());
  const dirty = `0+${MiB} clean, ${MiB}+65536 dirty, 1114112+${SIZE - 1114112} clean`;
  assert.equal(await mapOf('b0', served.uri()), dirty);
  assert.equal((await served.stop()).code, 0);
  assert.equal(await peerMap(path, 'b0'), dirty);
});

test('serve --bitmap names a bitmap that the image must have', async (t) => {
  const path = sparse(`${scratch(t)}/disk.img`, MiB);
  const { code: exit, stderr } = await blockplane('serve', '-B', 'b0', path);
  assert.equal(exit, 1);
  assert.match(stderr, /Could not find bitmap 'b0'/);
});
