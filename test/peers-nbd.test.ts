/** libnbd's tools, fio, nbdkit and nbd-client as clients. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { needs, needsPythonNbd, pattern, peer, python, run, scratch, serve, sparse } from './harness.ts';

const MiB = 1024 * 1024;

interface NbdInfo {
  readonly exports: { readonly 'export-name': string; readonly 'export-size': number; readonly description?: string }[];
}

test('nbdinfo agrees with the image, over a unix socket and over TCP', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/a.img`, pattern(2 * MiB + 1000));
  for (const at of [
    ['--socket', `${dir}/nbd.sock`],
    ['--listen', '127.0.0.1:0'],
  ]) {
    const served = await serve(t, [...at, '--export-name', 'disk one', '--description', 'the first', `${dir}/a.img`]);
    assert.match(
      served.uri(),
      at[0] === '--socket' ? /^nbd\+unix:\/\/\/disk%20one\?socket=/ : /^nbd:\/\/127\.0\.0\.1:\d+\//,
    );
    const info = JSON.parse(await peer('nbdinfo', '--json', served.uri())) as NbdInfo;
    assert.equal(info.exports[0]!['export-name'], 'disk one');
    assert.equal(info.exports[0]!['export-size'], 2 * MiB + 1000);
    assert.equal(info.exports[0]!.description, 'the first');
    assert.equal((await served.stop()).code, 0);
  }
});

test('several images are several exports of one socket, in the order given', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  const images = ['a', 'b', 'c'].map((name, i) => sparse(`${dir}/${name}.img`, (i + 1) * MiB));
  const served = await serve(t, ['--socket', `${dir}/nbd.sock`, ...images], { lines: 3 });
  const list = JSON.parse(await peer('nbdinfo', '--list', '--json', served.uri())) as NbdInfo;
  assert.deepEqual(
    list.exports.map((entry) => [entry['export-name'], entry['export-size']]),
    [
      ['a', MiB],
      ['b', 2 * MiB],
      ['c', 3 * MiB],
    ],
  );
  for (const [i, uri] of served.lines.slice(0, 3).entries()) {
    assert.equal((await peer('nbdinfo', '--size', uri)).trim(), String((i + 1) * MiB));
  }
});

test('images spread over IOThreads each have their own socket', needs('nbdinfo'), async (t) => {
  const dir = scratch(t);
  const images = ['a', 'b', 'c'].map((name, i) => sparse(`${dir}/${name}.img`, (i + 1) * MiB));
  const served = await serve(t, ['--iothreads', '2', ...images], { lines: 3 });
  for (const [i, uri] of served.lines.slice(0, 3).entries()) {
    assert.equal((await peer('nbdinfo', '--size', uri)).trim(), String((i + 1) * MiB));
  }
  assert.equal((await served.stop()).code, 0);
});

test('nbdcopy copies in and out', needs('nbdcopy'), async (t) => {
  const dir = scratch(t);
  const bytes = pattern(24 * MiB);
  writeFileSync(`${dir}/in.img`, bytes);
  sparse(`${dir}/disk.img`, bytes.length);
  const served = await serve(t, [`${dir}/disk.img`]);
  await peer('nbdcopy', '--flush', `${dir}/in.img`, served.uri());
  await peer('nbdcopy', served.uri(), `${dir}/out.img`);
  assert.ok(readFileSync(`${dir}/out.img`).equals(bytes));
  await served.stop();
  assert.ok(readFileSync(`${dir}/disk.img`).equals(bytes));
});

test('fio verifies what it wrote with four jobs', needs('fio'), async (t) => {
  const dir = scratch(t);
  if (!(await peer('fio', '--enghelp')).includes('nbd')) {
    t.skip('this fio has no nbd engine');
    return;
  }
  const served = await serve(t, [sparse(`${dir}/disk.img`, 64 * MiB)]);
  const out = await run('fio', [
    '--name=verify',
    '--ioengine=nbd',
    `--uri=${served.uri()}`,
    '--rw=randrw',
    '--bsrange=512-128k',
    '--bs_unaligned=1',
    '--size=16M',
    '--offset_increment=16M',
    '--numjobs=4',
    '--iodepth=16',
    '--verify=crc32c',
    '--verify_fatal=1',
    '--group_reporting',
    `--aux-path=${dir}`,
  ]);
  assert.equal(out.code, 0, out.stderr + out.stdout);
  assert.match(out.stdout, /err= 0/);
});

test('libnbd: structured replies, status, DF, FUA, trim, zero, cache, bounds', needsPythonNbd(), async (t) => {
  const dir = scratch(t);
  const served = await serve(t, ['--discard', 'unmap', sparse(`${dir}/disk.img`, 4 * MiB)]);
  const script = `
import nbd, errno, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1] if len(sys.argv) > 1 else ${JSON.stringify(served.uri())})
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
for ask in (h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_fast_zero, h.can_df, h.can_multi_conn, h.can_cache):
    assert ask(), ask
assert not h.is_read_only()
assert h.get_size() == 4 << 20
data = bytes(range(256)) * 256
h.pwrite(data, 1 << 20, nbd.CMD_FLAG_FUA)
assert bytes(h.pread(len(data), 1 << 20)) == data
assert bytes(h.pread(1000, (1 << 20) + 3)) == data[3:1003]
got = []
h.pread_structured(65536, 1 << 20, lambda buf, off, status, err: got.append((off, len(buf), status)), nbd.CMD_FLAG_DF)
assert len(got) == 1, got
extents = []
h.block_status(4 << 20, 0, lambda name, off, e, err: extents.extend(e))
assert sum(extents[0::2]) == 4 << 20, extents
assert extents[1::2] == [3, 0, 3], extents
one = []
h.block_status(4 << 20, 0, lambda name, off, e, err: one.extend(e), nbd.CMD_FLAG_REQ_ONE)
assert one == [1 << 20, 3], one
h.zero(4096, 1 << 20)
assert bytes(h.pread(4096, 1 << 20)) == bytes(4096)
h.trim(65536, 1 << 20)
h.cache(65536, 0)
h.flush()
try:
    h.zero(4096, 2 << 20, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e
h.set_strict_mode(0)
def read(): h.pread(512, 4 << 20)
def write(): h.pwrite(b"x" * 512, 4 << 20)
for (what, want) in ((read, errno.EINVAL), (write, errno.ENOSPC)):
    try:
        what()
        raise SystemExit("beyond the end was taken")
    except nbd.Error as e:
        assert e.errnum == want, e
assert bytes(h.pread(512, 0)) == bytes(512)
h.shutdown()
print("fine")
`;
  const out = await python(script);
  assert.equal(out.stdout.trim(), 'fine', out.stderr);
});

test('nbd-client lists our exports', needs('nbd-client'), async (t) => {
  const dir = scratch(t);
  const served = await serve(t, ['--listen', '127.0.0.1:0', '-x', 'first', sparse(`${dir}/disk.img`, MiB)]);
  const port = new URL(served.uri().replace('nbd:', 'http:')).port;
  const out = await run('nbd-client', ['-l', '127.0.0.1', port]);
  assert.match(out.stdout, /^first$/m);
});

test('nbdkit in front of us passes everything on', needs('nbdkit', 'nbdcopy'), async (t) => {
  const dir = scratch(t);
  if ((await run('nbdkit', ['nbd', '--version'])).code !== 0) {
    t.skip('nbdkit has no nbd plugin');
    return;
  }
  const bytes = pattern(8 * MiB);
  writeFileSync(`${dir}/in.img`, bytes);
  const served = await serve(t, ['-k', `${dir}/ours.sock`, sparse(`${dir}/disk.img`, bytes.length)]);
  const kit = spawn('nbdkit', ['-f', '-v', '-U', `${dir}/kit.sock`, 'nbd', `uri=${served.uri()}`], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  t.after(() => kit.kill());
  const exited = once(kit, 'exit');
  let log = '';
  kit.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    log += chunk;
  });
  while (!log.includes('listening on') && !log.includes('bound to')) await once(kit.stderr, 'data');
  await peer('nbdcopy', '--flush', `${dir}/in.img`, `nbd+unix:///?socket=${dir}/kit.sock`);
  await peer('nbdcopy', `nbd+unix:///?socket=${dir}/kit.sock`, `${dir}/out.img`);
  kit.kill();
  await exited;
  assert.ok(readFileSync(`${dir}/out.img`).equals(bytes));
});
