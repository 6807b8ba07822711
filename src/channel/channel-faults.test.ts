/** What goes wrong with channels: each is a typed error, never a hang, never the end of the process. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { eachBackend, inContext } from '../aio/testing.ts';
import type { BlockError } from '../base/errors.ts';
import { BlkHandle } from './handle.ts';
import { CHANNELS_MAX } from './host.ts';
import { type BlkDescriptor, DiskWord, Field, recordAt, Word } from './layout.ts';
import { attach, begin, CountedOp, report, share, startHome, until, work } from './testing-threads.ts';

eachBackend('use after close, and closing twice, is EBADF', async (backend) => {
  await using home = await startHome(backend);
  const handle = await attach(home);
  const region = handle.register(new SharedArrayBuffer(512));
  const bytes = region.bytes;
  const last = handle.read(0, bytes);
  await handle.close();
  await last;
  assert.equal(handle.closed, true);
  const closed = { code: 'EBADF', message: "Could not use 'disk': the handle is closed" };
  await assert.rejects(handle.read(0, bytes), closed);
  await assert.rejects(handle.flush(), closed);
  await assert.rejects(handle.close(), closed);
  assert.throws(() => handle.readSync(0, bytes), closed);
  assert.throws(() => handle.submit(new CountedOp()), closed);
  assert.throws(() => handle.share(), closed);
  assert.throws(() => handle.register(new SharedArrayBuffer(1)), closed);
  assert.throws(() => handle.unregister(region), closed);
  await handle[Symbol.asyncDispose]();
});

eachBackend(
  'memory that is not shared, not registered, given back, in use, or known twice is refused',
  async (backend) => {
    await using home = await startHome(backend);
    await using handle = await attach(home);
    await using other = await attach(home);
    const unknown = { code: 'EFAULT', message: /not on a buffer registered/ };
    await assert.rejects(handle.read(0, new Uint8Array(512)), unknown);
    await assert.rejects(handle.read(0, new Uint8Array(new SharedArrayBuffer(512))), unknown);
    assert.throws(() => handle.register(new ArrayBuffer(512) as unknown as SharedArrayBuffer), { code: 'EFAULT' });
    assert.throws(() => handle.register(undefined as unknown as SharedArrayBuffer), { code: 'EFAULT' });
    const region = handle.register(new SharedArrayBuffer(1024));
    assert.throws(() => handle.register(region.bytes.buffer as SharedArrayBuffer), { code: 'EEXIST' });
    await assert.rejects(other.read(0, region.bytes), unknown);
    const op = new CountedOp();
    op.iov.push(region, 0, 512);
    assert.throws(() => other.submit(op), { code: 'EFAULT', message: /not registered with this handle/ });
    op.iov.reset().push(region, 1000, 512);
    assert.throws(() => handle.submit(op), { code: 'EFAULT', message: /512 bytes at 1000 are not in the region/ });
    op.iov.reset().push({ ...region, bytes: region.bytes }, 0, 512);
    assert.throws(() => handle.submit(op), { code: 'EFAULT' });
    op.iov.reset().push(region, 0, 512);
    await home.call('hold', 'read');
    handle.submit(op);
    assert.throws(() => handle.submit(op), { code: 'EALREADY' });
    assert.throws(() => handle.unregister(region), { code: 'EBUSY', message: /1 requests use it/ });
    assert.throws(() => other.unregister(region), { code: 'EBADF' });
    await home.call('release', 'read');
    await until(() => op.results.length === 1);
    handle.unregister(region);
    assert.throws(() => handle.unregister(region), { code: 'EBADF' });
    assert.throws(() => handle.submit(op), { code: 'EFAULT' });
    op.iov.reset();
    for (let i = 0; i < 17; i++) op.iov.push(region, 0, 1);
    assert.throws(() => handle.submit(op), { code: 'EINVAL', message: /17 pieces, more than 16/ });
    await assert.rejects(handle.writeZeroes(-1, 5), { code: 'EINVAL' });
    await assert.rejects(handle.writeZeroes(0, 2 ** 60), { code: 'EINVAL' });
  },
);

eachBackend('a descriptor is for the one thread that it was given to, once', async (backend) => {
  await using home = await startHome(backend);
  for (const none of [undefined, null, {}, { kind: 'blockplane-handle' }, 'x']) {
    assert.throws(() => BlkHandle.attach(none as unknown as BlkDescriptor), { code: 'EINVAL' });
  }
  const descriptor = await share(home);
  assert.throws(() => BlkHandle.attach({ ...descriptor, port: undefined as never }), { code: 'EPERM' });
  const handle = BlkHandle.attach(descriptor);
  assert.throws(() => BlkHandle.attach(descriptor), { code: 'EBUSY', message: /used already/ });
  const shared = handle.share();
  const worker = begin({ descriptor: shared, what: 'verify' });
  assert.throws(
    () => BlkHandle.attach(shared),
    (error: BlockError) => ['EPERM', 'EBUSY'].includes(error.code),
  );
  assert.deepEqual((await once(worker, 'message'))[0], {});
  await handle.close();
});

eachBackend(
  'a thread that dies loses what it had under way: EIO, once each, and everybody is told',
  async (backend) => {
    for (const death of ['bug', 'exit']) {
      const home = await startHome(backend);
      const crash = once(home, 'crash') as Promise<[BlockError]>;
      const handle = await attach(home);
      const region = handle.register(new SharedArrayBuffer(300 * 512));
      await home.call('hold', 'read');
      const ops = Array.from({ length: 300 }, (_, i) => {
        const op = new CountedOp();
        op.iov.push(region, i * 512, 512);
        handle.submit(op);
        return op;
      });
      const flushing = handle.drain();
      const ends = [assert.rejects(flushing, { code: 'EIO', message: "Could not use 'disk': its thread 'io0' died" })];
      ends.push(
        home.call(death).then(
          () => undefined,
          () => undefined,
        ),
      );
      await Promise.all(ends);
      for (const op of ops) assert.deepEqual(op.results, [-5]);
      assert.equal((await crash)[0].code, 'EIO');
      await assert.rejects(handle.flush(), { code: 'EIO' });
      assert.throws(() => handle.flushSync(), { code: 'EIO' });
      assert.equal(handle.pending, 0);
      await handle.close();
      await home.stop();
    }
  },
);

inContext('a client with a loop of its own is told of the death as well', async (context, backend) => {
  const home = await startHome(backend);
  const crash = once(home, 'crash');
  const handle = BlkHandle.attach(await share(home), { context });
  await home.call('hold', 'flush');
  const memory = handle.register(new SharedArrayBuffer(512));
  await handle.write(0, memory.bytes);
  const flushing = assert.rejects(handle.flush(), { code: 'EIO' });
  home.call('exit').catch(() => undefined);
  await flushing;
  await crash;
  await handle.close();
});

eachBackend('a disk that is closed answers what is under way, then refuses', async (backend) => {
  await using home = await startHome(backend);
  const descriptor = await share(home);
  const handle = BlkHandle.attach(descriptor);
  const region = handle.register(new SharedArrayBuffer(512));
  await home.call('hold', 'read');
  const reading = handle.read(0, region.bytes);
  await until(async () => (await home.call('waiting', 'read')) === 1);
  const closing = home.call('closeDisk');
  // The ring is quicker than the message.
  await until(() => Atomics.load(descriptor.disk, DiskWord.CLOSED) === 1);
  const refused = { code: 'ESHUTDOWN' };
  await assert.rejects(handle.flush(), refused);
  await home.call('release', 'read');
  await reading;
  await closing;
  await until(() => {
    try {
      handle.share().port.close();
      return false;
    } catch (error) {
      assert.equal((error as BlockError).code, 'ESHUTDOWN');
      return true;
    }
  });
  await assert.rejects(handle.read(0, region.bytes), refused);
  await handle.close();
});

eachBackend(
  'a thread that dies while its requests wait: none of them begins, its memory is left alone',
  async (backend) => {
    await using home = await startHome(backend);
    await using handle = await attach(home);
    const region = handle.register(new SharedArrayBuffer(64 * 512));
    await handle.write(0, region.bytes.fill(5));
    for (const what of ['fill', 'leave'] as const) {
      const memory = new SharedArrayBuffer(64 * 512);
      const { requests } = await report(home);
      await home.call('drain');
      const worker = begin({ descriptor: await share(home), what, memory, times: 64 });
      const exit = once(worker, 'exit');
      if (what === 'fill') await once(worker, 'message');
      if (what === 'fill') await until(async () => (await report(home)).queued === 64);
      if (what === 'fill') await worker.terminate();
      await exit;
      await until(async () => (await report(home)).channels === 1);
      assert.equal((await report(home)).queued, 0);
      await home.call('undrain');
      await handle.read(0, region.bytes);
      assert.ok(new Uint8Array(memory).every((byte) => byte === 0));
      assert.ok((await report(home)).requests <= requests + 65);
    }
  },
);

eachBackend('a thread that dies with requests under way: they end, the disk goes on', async (backend) => {
  await using home = await startHome(backend);
  await using handle = await attach(home);
  await home.call('hold', 'read');
  const memory = new SharedArrayBuffer(64 * 512);
  const worker = begin({ descriptor: await share(home), what: 'fill', memory, times: 64 });
  await until(async () => (await home.call('waiting', 'read')) === 64);
  await worker.terminate();
  await until(async () => (await report(home)).channels === 1);
  assert.equal((await report(home)).inFlight, 64);
  await home.call('release', 'read');
  await until(async () => (await report(home)).inFlight === 0);
  await handle.flush();
  assert.deepEqual(await work({ descriptor: await share(home), what: 'verify' }), {});
});

eachBackend('records of nonsense are answered with errors, and touch nobody else', async (backend) => {
  await using home = await startHome(backend);
  await using good = await attach(home);
  const descriptor = await share(home);
  const { words } = descriptor;
  const bad = BlkHandle.attach(descriptor);
  const nonsense: ReadonlyArray<readonly [Partial<Record<keyof typeof Field, number>>, number]> = [
    [{ KIND: 99 }, -22],
    [{ KIND: -1 }, -22],
    [{ KIND: 5 }, -22],
    [{ KIND: 18 }, -22],
    [{ KIND: 0, RUN_COUNT: 17 }, -22],
    [{ KIND: 1, RUN_COUNT: -1 }, -22],
    [{ KIND: 0, RUN_COUNT: 1, RUNS: 77 }, -14],
    [{ KIND: 4, AT_HIGH: -1, LENGTH_LOW: 512 }, -5],
    [{ KIND: 16, AT_HIGH: 1 << 30, LENGTH_LOW: 1 }, -22],
  ];
  let submitted = 0;
  for (const [fields, expected] of nonsense) {
    const at = recordAt(7);
    for (const field of Object.values(Field)) words[at + field] = 0;
    for (const [name, value] of Object.entries(fields)) words[at + Field[name as keyof typeof Field]] = value;
    words[Word.SUBMIT_RING + submitted] = 7 + 256 * 5;
    Atomics.store(words, Word.SUBMITTED, ++submitted);
    await good.flush();
    await until(() => Atomics.load(words, Word.COMPLETED) === submitted);
    assert.equal(words[at + Field.RESULT], expected, JSON.stringify(fields));
  }
  Atomics.store(words, Word.SUBMITTED, -(2 ** 31));
  await good.flush();
  assert.equal((await report(home)).inFlight, 0);
  await bad.close().catch(() => undefined);
});

eachBackend('more handles than a disk serves are refused', async (backend) => {
  await using home = await startHome(backend);
  const handles = [];
  for (let i = 0; i < CHANNELS_MAX; i++) handles.push(await attach(home));
  const refused = await attach(home);
  await assert.rejects(refused.flush(), {
    code: 'EMFILE',
    message: `Could not open a handle: ${CHANNELS_MAX} are open`,
  });
  for (const handle of handles) await handle.close();
});
