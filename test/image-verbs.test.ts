/** create, info, check, snapshot, resize, amend, and serve of qcow2 images, as commands. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { blockplane, needs, type Output, pattern, peer, scratch, serve, socketOf, sparse } from './harness.ts';
import { withNames } from './hostile-names.ts';

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

/** Runs a verb that must succeed; answers what it printed. */
async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await blockplane(...args);
  assert.equal(code, 0, stderr);
  assert.equal(stderr, '');
  return stdout;
}

/** Runs a verb that must fail with one line. */
async function fails(code: number, message: RegExp, ...args: string[]): Promise<Output> {
  const output = await blockplane(...args);
  assert.equal(output.code, code, output.stderr);
  assert.match(output.stderr, message);
  assert.match(output.stderr, /^blockplane: [^\n]+\n$/);
  return output;
}

async function theirs(path: string): Promise<Record<string, unknown>> {
  return JSON.parse(await peer('qemu-img', 'info', '--output=json', path)) as Record<string, unknown>;
}

test('the name of what is made says its format, and a name of what cannot be made is refused', async (t) => {
  const dir = scratch(t);
  const isQcow2 = (path: string): boolean => readFileSync(path).subarray(0, 3).toString() === 'QFI';
  await ok('create', `${dir}/a.raw`, '1M');
  for (const verb of ['copy', 'convert', 'dd']) {
    const to = (name: string) =>
      verb === 'dd' ? [`if=${dir}/a.raw`, `of=${dir}/${name}`] : [`${dir}/a.raw`, `${dir}/${name}`];
    await ok(verb, ...to(`${verb}.qcow2`));
    assert.ok(isQcow2(`${dir}/${verb}.qcow2`), verb);
    await fails(1, /vmdk images cannot be made; give the format raw/, verb, ...to('b.vmdk'));
    await ok(verb, '-O', 'raw', ...to(`${verb}.vhd`));
  }
  await fails(1, /Could not create '.*b\.vmdk': vmdk images cannot be made/, 'create', `${dir}/b.vmdk`, '1M');
  assert.equal(existsSync(`${dir}/b.vmdk`), false);
  await ok('create', '-f', 'raw', `${dir}/b.vmdk`, '1M');
});

test('create makes what it is asked for, and says what it cannot', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  assert.equal(await ok('create', '-o', 'cluster_size=128k,extended_l2=on', '-o', 'refcount_bits=8', path, '1G'), '');
  const info = await theirs(path);
  assert.deepEqual([info['virtual-size'], info['cluster-size'], info.format], [GiB, 131_072, 'qcow2']);
  await ok('create', '-b', 'a.qcow2', `${dir}/b.qcow2`);
  assert.equal((await theirs(`${dir}/b.qcow2`))['virtual-size'], GiB);
  await ok('create', `${dir}/c,d.img`, '3M');
  assert.equal(statSync(`${dir}/c,d.img`).size, 3 * MiB);
  await ok('create', '-f', 'qcow2', '-o', 'backing_file=c,,d.img,backing_fmt=raw', `${dir}/e.img`);
  assert.equal((await theirs(`${dir}/e.img`))['backing-filename'], 'c,d.img');
  await fails(1, /a\.qcow2': File exists/, 'create', path, '1G');
  await ok('create', '--overwrite', path, '2M');
  assert.equal((await theirs(path))['virtual-size'], 2 * MiB);
  await fails(
    1,
    /Unknown option 'clustersize' of qcow2: there are size, compat,/,
    'create',
    '-o',
    'clustersize=1',
    path,
    '1M',
  );
  await fails(2, /SIZE: 'much' is not a size/, 'create', path, 'much');
  await fails(1, /option 'size' is missing/, 'create', `${dir}/f.qcow2`);
  await fails(1, /format of the backing file/, 'create', '-b', 'c,d.img', `${dir}/f.qcow2`);
  assert.equal(existsSync(`${dir}/f.qcow2`), false);
  assert.match(
    await ok('create', '-o', 'help', `${dir}/f.qcow2`),
    /^Options of qcow2:\n[\s\S]*cluster-size +bytes of a cluster/,
  );
  const { stdout } = await blockplane('create', '--help');
  assert.match(stdout, /Usage: blockplane create \[options\] <FILE> \[SIZE\]/);
});

test(
  'info says what qemu-img says, by the same names, of images with everything',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const dir = scratch(t);
    const path = `${dir}/a.qcow2`;
    writeFileSync(`${dir}/base.img`, pattern(MiB));
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.img', '-F', 'raw', path, '2M');
    await peer('qemu-img', 'snapshot', '-c', 'first', path);
    await peer('qemu-img', 'bitmap', '--add', '-g', '64k', path, 'b0');
    const ours = JSON.parse(await ok('info', '--output', 'json', path)) as Record<string, unknown>;
    const { children, ...info } = await theirs(path);
    assert.deepEqual(ours, info);
    const text = await ok('info', path);
    const known = (await peer('qemu-img', 'info', path))
      .split('\n')
      .filter((line) => /^(image|file format|virtual size|disk size|cluster_size|backing file format):/.test(line));
    for (const line of known) assert.ok(text.includes(`${line}\n`), line);
    assert.match(text, /backing file: base\.img \(would be: .*\/base\.img\)\n/);
    assert.match(text, /1 +first +0 B +2 MiB/);
    assert.match(text, /bitmap: b0 \(granularity 65536, auto\)/);
    // What a name in an image does to a terminal.
    const evil = withNames(path, `${dir}/evil.qcow2`, { backing: '\u001b[2J\n' });
    assert.match(await ok('info', evil), /backing file: \?\[2J\? /);
    await fails(1, /Could not open '.*none': No such file/, 'info', `${dir}/none`);
  },
);

test('info shows how an image is encrypted, as qemu-img does, and no secret', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  writeFileSync(`${dir}/key`, 'abc');
  for (const [i, options] of [
    '',
    ',encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv',
  ].entries()) {
    const path = `${dir}/${i}.qcow2`;
    const all = `encrypt.format=luks,encrypt.iter-time=1${options}`;
    await ok('create', '-o', all, '--key-file', `${dir}/key`, path, '1M');
    const { children, ...info } = await theirs(path);
    assert.deepEqual(JSON.parse(await ok('info', '--output', 'json', path)), info);
    const text = await ok('info', path);
    assert.match(text, options === '' ? /cipher alg: aes-256\n +cipher mode: xts/ : /ivgen hash alg: sha256/);
    assert.match(text, /slot 0: active, iters \d+, stripes 4000, key offset 4096\n +slot 1: not in use/);
    const bytes = readFileSync(path);
    bytes[bytes.indexOf('LUKS\xba\xbe', 0, 'latin1') + 7] = 9;
    writeFileSync(path, bytes);
    assert.match(await ok('info', path), /format: luks\n +damaged: .*LUKS version 9 is not supported/);
  }
});

test('check ends with the exit codes of qemu-img', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  await fails(63, /the format 'raw' does not support it/, 'check', sparse(`${dir}/a.img`, MiB));
  await fails(1, /No such file or directory/, 'check', `${dir}/none.qcow2`);
  await fails(2, /--repair: 'some' is not one of leaks, all/, 'check', '-r', 'some', `${dir}/none.qcow2`);
  await ok('create', '-f', 'qcow2', `${dir}/b.img`, '1M');
  await fails(1, /looks like a qcow2 image, and its name does not say so/, 'check', '-r', 'all', `${dir}/b.img`);
});

test('check finds what qemu-img check finds, repairs it, and looks at no other file', needs('qemu-img'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  await ok('create', path, '16M');
  const first = await blockplane('check', path);
  if (/not supported yet/.test(first.stderr)) return t.skip('there is no check yet');
  assert.match(first.stdout, /^No errors were found on the image\n/);
  const clean = readFileSync(path);
  const table = Number(clean.readBigUInt64BE(48));
  const counts = Number(clean.readBigUInt64BE(table));
  const l1 = Number(clean.readBigUInt64BE(40)) / 65_536;
  const damage = { leaks: [clean.length / 65_536, 1, 3], corruptions: [l1, 0, 2] } as const;
  for (const [what, [cluster, count, code]] of Object.entries(damage)) {
    const bytes = Buffer.concat([clean, Buffer.alloc(65_536)]);
    bytes.writeUInt16BE(count, counts + 2 * cluster);
    const names = { backing: '../nowhere.img', backingFormat: 'raw' };
    writeFileSync(path, bytes);
    withNames(path, path, names);
    const json = await blockplane('check', '--output', 'json', path);
    assert.equal(json.code, code, `${what}: ${json.stderr}`);
    assert.equal((JSON.parse(json.stdout) as Record<string, unknown>)[what], 1);
    const repaired = await ok('check', '-r', 'all', path);
    assert.match(repaired, /Repaired: /);
    assert.match(await ok('check', path), /No errors/);
  }
});

test('snapshot, resize and amend change what qemu-img then sees', needs('qemu-img', 'qemu-io'), async (t) => {
  const path = `${scratch(t)}/a.qcow2`;
  await ok('create', path, '1M');
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 1M', path);
  await ok('snapshot', '-c', 'before', path);
  await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 2 0 1M', path);
  assert.match(await ok('snapshot', path), /^ID +TAG.*\n1 +before +0 B +1 MiB/);
  const [listed] = JSON.parse(await ok('snapshot', '-l', '--output', 'json', path)) as Record<string, unknown>[];
  const { snapshots } = (await theirs(path)) as { snapshots: unknown[] };
  assert.deepEqual(listed, snapshots[0]);
  await ok('snapshot', '-a', 'before', path);
  assert.match(await peer('qemu-io', '-f', 'qcow2', '-c', 'read -P 1 0 1M', path), /read 1048576/);
  await ok('snapshot', '-d', '1', path);
  assert.equal(await ok('snapshot', path), '');
  await fails(1, /Could not find snapshot 'before'/, 'snapshot', '-a', 'before', path);
  await fails(2, /give one of them/, 'snapshot', '-a', '1', '-d', '1', path);
  await ok('resize', path, '+2M');
  assert.equal((await theirs(path))['virtual-size'], 3 * MiB);
  await fails(2, /--shrink says that it is meant/, 'resize', path, '2M');
  await ok('resize', '--shrink', path, '--', '-1M');
  assert.equal((await theirs(path))['virtual-size'], 2 * MiB);
  await ok('amend', '-o', 'compat=0.10', path);
  await fails(1, /Could not amend/, 'amend', '-o', 'cluster_size=4k', path);
  // A name that leads nowhere is in the way of everything but another name.
  await ok('amend', '-o', 'backing_file=nbd://nowhere,backing_fmt=raw', path);
  await fails(1, /'nbd:' is not followed/, 'resize', path, '3M');
  await ok('amend', '-o', 'backing_file=', path);
  await ok('resize', path, '2M');
  const { data } = (await theirs(path))['format-specific'] as { data: { compat: string } };
  assert.equal(data.compat, '0.10');
  await peer('qemu-img', 'check', '-q', path);
});

test('serve writes an overlay over NBD, which qemu-img then reads', needs('qemu-img', 'qemu-io'), async (t) => {
  const dir = scratch(t);
  mkdirSync(`${dir}/bases`);
  const base = pattern(4 * MiB, 7);
  writeFileSync(`${dir}/bases/base.img`, base);
  const path = `${dir}/a.qcow2`;
  await ok('create', '-b', 'bases/base.img', '-F', 'raw', path);
  const served = await serve(t, [path]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 9 1000 100000', '-c', 'flush', served.uri());
  const want = base.slice();
  want.fill(9, 1000, 101_000);
  writeFileSync(`${dir}/want.img`, want);
  await peer('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'raw', served.uri(), `${dir}/want.img`);
  assert.equal((await served.stop()).code, 0);
  await peer('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw', path, `${dir}/want.img`);
  await peer('qemu-img', 'check', '-q', path);
  assert.deepEqual(new Uint8Array(readFileSync(`${dir}/bases/base.img`)), base);
});

test(
  'serve shows a snapshot read-only, and follows no name further than it may',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const dir = scratch(t);
    for (const one of ['images', 'bases']) mkdirSync(`${dir}/${one}`);
    writeFileSync(`${dir}/bases/base.img`, pattern(MiB, 7));
    const path = `${dir}/images/a.qcow2`;
    await ok('create', '-b', `${dir}/bases/base.img`, '-F', 'raw', path);
    await fails(
      1,
      /Could not open the backing file '.*base\.img' that '.*a\.qcow2' names: .*allowDirectories/,
      'serve',
      path,
    );
    await fails(2, /--references: 'some' is not one of none/, 'serve', '--references', 'some', path);
    const allow = ['--allow-directory', `${dir}/bases`];
    await ok('snapshot', '-c', 'old', ...allow, path);
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 3 0 64k', path);
    const served = await serve(t, ['--snapshot', 'old', ...allow, path]);
    await peer('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'raw', served.uri(), `${dir}/bases/base.img`);
    await assert.rejects(peer('qemu-io', '-f', 'raw', '-c', 'write 0 512', served.uri()));
    await served.stop();
    const all = await serve(t, ['--references', 'all', '-r', path]);
    assert.match(await peer('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 3 0 64k', all.uri()), /read 65536/);
    await all.stop();
    await fails(1, /has no snapshot 'new'/, 'serve', '--snapshot', 'new', ...allow, path);
    writeFileSync(`${dir}/key`, 'secret');
    await fails(2, /--key-file: Could not read '.*none'/, 'serve', '--key-file', `${dir}/none`, path);
    await fails(2, /only with an IMAGE/, 'serve', '--key-file', `${dir}/key`);
  },
);

test('serve takes passphrases as secret objects, which options name', needs('qemu-img', 'qemu-io'), async (t) => {
  const dir = scratch(t);
  const path = `${dir}/a.qcow2`;
  writeFileSync(`${dir}/key`, 'hush-hush');
  const secret = ['--object', `secret,id=sec0,file=${dir}/key`];
  const options = 'encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10';
  await peer('qemu-img', 'create', '-q', ...secret, '-f', 'qcow2', '-o', options, path, '1M');
  const tree = `driver=qcow2,encrypt.format=luks,encrypt.key-secret=sec0,file.driver=file,file.filename=${path}`;
  const served = await serve(t, [...secret, '--image-opts', tree]);
  await peer('qemu-io', '-f', 'raw', '-c', 'write -P 5 0 64k', served.uri());
  await served.stop();
  await peer('qemu-io', ...secret, '--image-opts', tree, '-c', 'read -P 5 0 64k');
  await fails(1, /No secret with id 'sec0'/, 'serve', '--image-opts', tree);
  await fails(
    1,
    /'encrypt.format' is aes, and its encryption luks/,
    'serve',
    ...secret,
    '--image-opts',
    tree.replace('=luks', '=aes'),
  );
  writeFileSync(`${dir}/keys.psk`, `qemu:${'2e'.repeat(32)}\n`);
  const psk = ['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=server`, '--tls-creds', 'tls0'];
  const secure = await serve(t, [...secret, ...psk, '--image-opts', tree]);
  const client = ['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=client`, '--image-opts'];
  const node = `driver=nbd,server.type=unix,server.path=${socketOf(secure.uri())},tls-creds=tls0`;
  await peer('qemu-io', ...client, '-c', 'read -P 5 0 64k', node);
  await secure.stop();
  await fails(2, /--tls-creds: there is no --object with id 'tls0'/, 'serve', '--tls-creds', 'tls0');
  await fails(1, /Parameter 'id' is missing/, 'serve', '--object', `secret,file=${dir}/key`, path);
});
