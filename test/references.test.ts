/** Names inside an image lead nowhere but where the policy allows: docs/QCOW2.md, "Names inside an image". */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { linkSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { relative } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { type BlockError, create, IOThread, inspect, type OpenOptions, open } from '../src/index.ts';
import { type BlockdevOptions, blockdevOf } from '../src/lib/options.ts';
import { policyOf } from '../src/lib/reference-policy.ts';
import { assertUnchanged, CHAIN_MAX, resolveReferences } from '../src/lib/references.ts';
import { needs, pattern, peer, run, scratch } from './harness.ts';
import { hostileNames, type Names, withNames } from './hostile-names.ts';

const MiB = 1024 * 1024;

let iothread: IOThread;
before(async () => {
  iothread = await IOThread.start();
});
after(() => iothread.stop());

/** A directory `images` with an empty image and things to step on, and one `outside` beside it. */
async function world(t: TestContext): Promise<{ images: string; outside: string; empty: string }> {
  const dir = scratch(t);
  const [images, outside] = [`${dir}/images`, `${dir}/outside`];
  for (const one of [images, outside, `${images}/sub`]) mkdirSync(one);
  writeFileSync(`${outside}/secret.img`, pattern(MiB, 99));
  symlinkSync(`${outside}/secret.img`, `${images}/link.img`);
  symlinkSync(outside, `${images}/links`);
  execFileSync('mkfifo', [`${images}/fifo`]);
  const server = createServer().listen(`${images}/socket`);
  t.after(() => server.close());
  const empty = `${images}/empty.qcow2`;
  await create(empty, { size: MiB, clusterSize: 4096, iothread });
  return { images, outside, empty };
}

/** What the disk begins with; or why it does not open. */
async function opens(target: string | BlockdevOptions, options: OpenOptions = {}): Promise<Uint8Array> {
  await using disk = await open(target, { readOnly: true, iothread, ...options });
  return (await disk.read(new Uint8Array(16), 0, 16, 0)).buffer;
}

async function refuses(target: string | BlockdevOptions, why: RegExp, options: OpenOptions = {}): Promise<BlockError> {
  let error: BlockError | undefined;
  await assert.rejects(opens(target, options), (thrown: BlockError) => {
    error = thrown;
    assert.match(thrown.message, why);
    assert.equal(thrown.name, 'BlockError');
    return true;
  });
  return error!;
}

function rawFile(path: string, seed: number): Uint8Array {
  const bytes = pattern(MiB, seed);
  writeFileSync(path, bytes);
  return bytes.subarray(0, 16);
}

test('every hostile name is refused by open and shown by inspect, as backing file and as data file', async (t) => {
  const { images, outside, empty } = await world(t);
  const names = hostileNames(outside);
  assert.ok(names.length >= 60, `${names.length}`);
  for (const name of names) {
    for (const kind of ['backing', 'data'] as const) {
      const path = withNames(empty, `${images}/image.qcow2`, { [kind]: name });
      for (const readOnly of [true, false]) {
        const error = await refuses(
          path,
          /^Could not open the (backing|data) file '.*' that '.*image\.qcow2' names: ./s,
          {
            readOnly,
          },
        );
        assert.doesNotMatch(error.message, /[\n\u202e]/);
      }
      const { qcow2 } = await inspect(path);
      assert.equal(kind === 'backing' ? qcow2!.backingFile : qcow2!.dataFile, name);
    }
  }
});

test('nothing but the image is opened, nothing is connected to and nothing run', needs('strace'), async (t) => {
  const { images, outside, empty } = await world(t);
  const paths = hostileNames(outside).flatMap((name, i) => [
    withNames(empty, `${images}/b${i}.qcow2`, { backing: name, backingFormat: 'raw' }),
    withNames(empty, `${images}/d${i}.qcow2`, { data: name }),
  ]);
  rawFile(`${images}/base.img`, 3);
  const fine = withNames(empty, `${images}/fine.qcow2`, { backing: 'base.img' });
  const script = `
    import { existsSync } from 'node:fs';
    import { open as look } from 'node:fs/promises';
    import { check, inspect, IOThread, open } from ${JSON.stringify(new URL('../src/index.js', import.meta.url))};
    const iothread = await IOThread.start();
    const attempts = async (path) => {
      for (const readOnly of [true, false]) await (await open(path, { readOnly, iothread })).close();
    };
    // Everything is loaded by then.
    await attempts(${JSON.stringify(fine)});
    await check(${JSON.stringify(fine)}, { iothread }).catch(() => undefined);
    await inspect(${JSON.stringify(fine)});
    await look('mark').catch(() => undefined);
    let refused = 0;
    for (const path of ${JSON.stringify(paths)}) {
      await inspect(path);
      for (const readOnly of [true, false]) await open(path, { readOnly, iothread }).catch(() => refused++);
      await check(path, { iothread }).catch(() => undefined);
    }
    await look('mark').catch(() => undefined);
    await iothread.stop();
    console.log(refused);`;
  const log = `${outside}/log`;
  const args = [
    '-f',
    '-qq',
    '-e',
    'trace=openat,open,openat2,connect,execve',
    '-o',
    log,
    '-E',
    'BLOCKPLANE_AIO=pool',
    process.execPath,
  ];
  const { code, stdout, stderr } = await run('strace', [...args, '--input-type=module', '-e', script]);
  if (code !== 0 && /ptrace|Operation not permitted/.test(stderr)) return t.skip(`strace: ${stderr.trim()}`);
  assert.equal(code, 0, stderr);
  assert.equal(Number(stdout), paths.length * 2);
  const [, between] = readFileSync(log, 'utf8').split(/^.*"mark".*\n/m);
  const calls = between!.split('\n').filter((line) => /open|connect|execve/.test(line));
  assert.ok(calls.length >= paths.length * 3, `${calls.length} calls were seen`);
  const images2 = new Set(paths);
  // What the C library and V8 want to know of the machine, at a time of their own.
  const ofTheSystem = /^\/(proc\/sys\/vm|sys\/devices\/system\/cpu)\//;
  const foreign = calls.filter((line) => {
    const path = /openat\(AT_FDCWD, "([^"]*)"/.exec(line)?.[1] ?? '';
    return !images2.has(path) && !ofTheSystem.test(path);
  });
  assert.deepEqual(foreign, []);
});

test('relative names inside the directory are followed, from each image on', async (t) => {
  const { images, empty } = await world(t);
  const bytes = rawFile(`${images}/base.img`, 3);
  const top = `${images}/top.qcow2`;
  const names = ['base.img', './base.img', 'sub/../base.img', '../images/base.img', './a:b.img', 'sub/inner.qcow2'];
  linkSync(`${images}/base.img`, `${images}/a:b.img`);
  withNames(empty, `${images}/sub/inner.qcow2`, { backing: '../base.img', backingFormat: 'raw' });
  for (const backing of names) assert.deepEqual(await opens(withNames(empty, top, { backing })), bytes, backing);
  // The image itself may be a link: its names begin where it was found.
  symlinkSync(top, `${images}/sub/linked.qcow2`);
  withNames(empty, top, { backing: 'base.img' });
  await refuses(`${images}/sub/linked.qcow2`, /No such file/);
  // So are the names of one below.
  symlinkSync('sub/inner.qcow2', `${images}/current.qcow2`);
  withNames(empty, `${images}/sub/inner.qcow2`, { backing: 'base.img', backingFormat: 'raw' });
  assert.deepEqual(await opens(withNames(empty, top, { backing: 'current.qcow2' })), bytes);
});

test(
  'a relative name of a data file begins at the current directory, as with QEMU',
  needs('qemu-img', 'qemu-io'),
  async (t) => {
    const { images, outside } = await world(t);
    const before = process.cwd();
    t.after(() => process.chdir(before));
    process.chdir(images);
    const data = 'sub/data.raw';
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', `data_file=${data}`, 'sub/theirs.qcow2', '1M');
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 7 0 64k', 'sub/theirs.qcow2');
    assert.deepEqual(await opens('sub/theirs.qcow2'), new Uint8Array(16).fill(7));
    await create('sub/ours.qcow2', { size: MiB, dataFile: 'sub/more.raw' });
    await peer('qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 64k', 'sub/ours.qcow2');
    assert.deepEqual(await opens('sub/ours.qcow2'), new Uint8Array(16).fill(9));
    process.chdir(outside);
    const { code, stderr } = await run('qemu-io', ['-f', 'qcow2', '-c', 'read 0 512', `${images}/sub/theirs.qcow2`]);
    assert.notEqual(code, 0);
    assert.match(stderr, /No such file/);
    await refuses(`${images}/sub/theirs.qcow2`, /data file 'sub\/data\.raw' that .* names: No such file/);
    // What is found there by that name is not the image's neighbour.
    mkdirSync('sub');
    rawFile('sub/data.raw', 1);
    await refuses(`${images}/sub/theirs.qcow2`, /it is outside the image's directory/);
  },
);

test('more is allowed by references and allowDirectories, less too, and never a protocol', async (t) => {
  const { images, outside, empty } = await world(t);
  const bytes = pattern(MiB, 99).subarray(0, 16);
  const top = `${images}/top.qcow2`;
  for (const backing of [`${outside}/secret.img`, '../outside/secret.img', 'link.img', 'links/secret.img']) {
    withNames(empty, top, { backing, backingFormat: 'raw' });
    assert.match((await refuses(top, /allowDirectories, or references 'all'/)).code, /EACCES/);
    assert.deepEqual(await opens(top, { references: 'all' }), bytes);
    assert.deepEqual(await opens(top, { allowDirectories: [outside] }), bytes);
    assert.deepEqual(await opens(top, { allowDirectories: [outside], references: 'none' }), bytes);
    await refuses(top, /outside|absolute/, { allowDirectories: [`${images}/sub`] });
  }
  rawFile(`${images}/base.img`, 3);
  withNames(empty, top, { backing: 'base.img' });
  await refuses(top, /references is 'none'/, { references: 'none' });
  await refuses(top, /outside the allowed directories/, { references: 'none', allowDirectories: [outside] });
  await refuses(top, /Could not allow files in '.*missing'/, { allowDirectories: [`${outside}/missing`] });
  for (const backing of [`file:${outside}/secret.img`, 'json:{}', 'nbd://127.0.0.1/']) {
    withNames(empty, top, { backing, backingFormat: 'raw' });
    await refuses(top, /':?' is not followed, only files are|is not followed/, { references: 'all' });
  }
  await refuses(top, /Unknown references 'some'/, { references: 'some' as never });
});

test('what a tree says itself is not asked about', async (t) => {
  const { images, outside, empty } = await world(t);
  const top = withNames(empty, `${images}/top.qcow2`, { backing: '/etc/passwd', backingFormat: 'raw' });
  const file = { driver: 'file', filename: top } as const;
  assert.deepEqual(await opens({ driver: 'qcow2', file, backing: null }), new Uint8Array(16));
  const secret = { driver: 'file', filename: `${outside}/secret.img` } as const;
  const bytes = pattern(MiB, 99).subarray(0, 16);
  assert.deepEqual(await opens({ driver: 'qcow2', file, backing: { driver: 'raw', file: secret } }), bytes);
  // An image in it is asked about as any other.
  const inner = withNames(empty, `${images}/inner.qcow2`, { backing: '../outside/secret.img', backingFormat: 'raw' });
  const below = { driver: 'qcow2', file: { driver: 'file', filename: inner } } as const;
  await refuses({ driver: 'qcow2', file, backing: below }, /that '.*inner\.qcow2' names: it is outside/);
});

test('a tree that goes round in a circle is refused', async () => {
  const circle: Record<string, unknown> = { driver: 'raw' };
  circle.file = circle;
  await assert.rejects(opens(circle as unknown as BlockdevOptions), { code: 'ELOOP' });
});

test('loops of any length end, and are called so', { timeout: 60_000 }, async (t) => {
  const { images, empty } = await world(t);
  for (const length of [1, 2, 3, 10, 200, 1000]) {
    for (let i = 0; i < length; i++) {
      const backing = `loop${(i + 1) % length}.qcow2`;
      withNames(empty, `${images}/loop${i}.qcow2`, { backing, backingFormat: 'qcow2' });
    }
    const why = length < CHAIN_MAX ? /loop0\.qcow2' that .* names: the chain comes back to it/ : /more than 256 images/;
    assert.equal((await refuses(`${images}/loop0.qcow2`, why)).code, 'ELOOP');
  }
  linkSync(`${images}/loop0.qcow2`, `${images}/other-name.qcow2`);
  withNames(empty, `${images}/loop0.qcow2`, { backing: 'other-name.qcow2' });
  await refuses(`${images}/loop0.qcow2`, /comes back to it/);
  withNames(empty, `${images}/loop0.qcow2`, { data: relative('.', `${images}/other-name.qcow2`) });
  await refuses(`${images}/loop0.qcow2`, /comes back to it/);
});

test('a chain of 256 images opens, one of 257 does not', { timeout: 60_000 }, async (t) => {
  const { images, empty } = await world(t);
  const bytes = rawFile(`${images}/image1.img`, 3);
  const name = (n: number): string => (n === 1 ? 'image1.img' : `image${n}.qcow2`);
  for (let n = 2; n <= CHAIN_MAX + 1; n++) withNames(empty, `${images}/${name(n)}`, { backing: name(n - 1) });
  assert.deepEqual(await opens(`${images}/${name(CHAIN_MAX)}`), bytes);
  assert.equal((await refuses(`${images}/${name(CHAIN_MAX + 1)}`, /more than 256 images/)).code, 'ELOOP');
});

test('without a format a backing file is what its name says, or else leads nowhere', async (t) => {
  const { images, empty } = await world(t);
  const top = `${images}/top.qcow2`;
  const bytes = rawFile(`${images}/base.img`, 3);
  const as = (name: string, names: Names): string => withNames(empty, `${images}/${name}`, names);
  as('a.qcow2', { backing: 'base.img' });
  assert.deepEqual(await opens(withNames(empty, top, { backing: 'a.qcow2' })), bytes);
  // As a guest would write it into a raw base.
  as('guest.img', { backing: 'base.img' });
  await refuses(
    withNames(empty, top, { backing: 'guest.img' }),
    /no format is given, it looks like a qcow2 image, and/,
  );
  assert.equal((await opens(withNames(empty, top, { backing: 'guest.img', backingFormat: 'raw' })))[0], 0x51);
  assert.deepEqual(await opens(withNames(empty, top, { backing: 'guest.img', backingFormat: 'qcow2' })), bytes);
  as('alone.img', {});
  assert.deepEqual(await opens(withNames(empty, top, { backing: 'alone.img' })), new Uint8Array(16));
  writeFileSync(`${images}/v.img`, 'KDMV'.padEnd(4096));
  await refuses(withNames(empty, top, { backing: 'v.img' }), /looks like a vmdk image/);
  await refuses(withNames(empty, top, { backing: 'v.img', backingFormat: 'vmdk' }), /format 'vmdk' is not supported/);
});

test('a file whose name does not say qcow2 is never written as such unasked, nor leads anywhere', async (t) => {
  const { images, empty } = await world(t);
  const bytes = rawFile(`${images}/base.img`, 3);
  const guest = withNames(empty, `${images}/guest.img`, { backing: 'base.img', backingFormat: 'raw' });
  await refuses(guest, /looks like a qcow2 image, and its name does not say so; give the format/, { readOnly: false });
  await refuses(guest, /looks like a qcow2 image that names other files/);
  assert.equal((await opens(guest, { format: 'raw', readOnly: false }))[0], 0x51);
  assert.deepEqual(await opens(guest, { format: 'qcow2' }), bytes);
  const alone = withNames(empty, `${images}/alone.img`, {});
  assert.deepEqual(await opens(alone), new Uint8Array(16));
  await refuses(alone, /give the format/, { readOnly: false });
  assert.equal((await inspect(guest)).qcow2?.backingFile, 'base.img');
});

test('a file or a name that changes between the check and the open is refused', async (t) => {
  const { images, outside, empty } = await world(t);
  rawFile(`${images}/base.img`, 3);
  rawFile(`${images}/other.img`, 4);
  const top = withNames(empty, `${images}/top.qcow2`, { backing: 'base.img', backingFormat: 'raw' });
  const policy = policyOf({});
  const tree = blockdevOf(top, { readOnly: true });
  const resolved = await resolveReferences(tree, policy);
  await opens(resolved);
  await assertUnchanged(tree, resolved, policy, top);
  // Another name in the same image.
  withNames(empty, top, { backing: 'other.img', backingFormat: 'raw' });
  await assert.rejects(assertUnchanged(tree, resolved, policy, top), { code: 'EAGAIN' });
  withNames(empty, top, { backing: 'base.img', backingFormat: 'raw' });
  await assertUnchanged(tree, resolved, policy, top);
  // Another file of the same name, and a link out of the tree.
  renameSync(`${images}/base.img`, `${images}/was-base.img`);
  renameSync(`${images}/other.img`, `${images}/base.img`);
  assert.equal((await refuses(resolved, /it is another file than it was a moment ago/)).code, 'EAGAIN');
  renameSync(`${images}/base.img`, `${images}/other.img`);
  symlinkSync(`${outside}/secret.img`, `${images}/base.img`);
  await refuses(resolved, /it is another file/);
});
