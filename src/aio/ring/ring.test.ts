import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Iov } from '../../base/memory.ts';
import * as eventfd from '../../native/eventfd.ts';
import { native } from '../../native/lib.ts';
import { AioContext } from '../context.ts';
import { FdSignal, FdWatch } from '../fd-watch.ts';
import { AioOp, Gate, markResumed, WaitOp } from '../op.ts';
import { whyNoRing } from '../select.ts';
import { RingBackend } from './backend.ts';

const skip = process.env.BLOCKPLANE_AIO === 'pool' ? 'BLOCKPLANE_AIO=pool' : ((await whyNoRing()) ?? false);

function onRing(title: string, body: (context: AioContext, folder: string) => Promise<void>): void {
  test(title, { skip, timeout: 20_000 }, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ring-'));
    const context = new AioContext(new RingBackend(), { name: 'ring' });
    try {
      await body(context, folder);
    } finally {
      await context.stop();
      rmSync(folder, { recursive: true });
    }
  });
}

/** Counts down with each end. */
class Counted extends AioOp {
  static left = 0;
  readonly iov = new Iov();
  result = 0;
  complete(result: number): void {
    this.result = result;
    Counted.left--;
  }
}

onRing(
  'L2 more operations than the queue holds are submitted early, and none takes the runs of another',
  async (context, folder) => {
    const count = 3000;
    const path = join(folder, 'f');
    const bytes = Buffer.alloc(count * 512);
    for (let i = 0; i < count; i++) bytes.fill((i % 255) + 1, i * 512, i * 512 + 512);
    writeFileSync(path, bytes);
    const file = await context.backend.openFile(path, { writable: false });
    const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(count * 512)));
    const ops: Counted[] = [];
    Counted.left = count;
    // Every third has one run and so no entry in the table of runs: the table empties at other moments than the queue.
    for (let i = 0; i < count; i++) {
      const op = new Counted();
      if (i % 3 === 0) op.iov.push(memory, i * 512, 512);
      else op.iov.push(memory, i * 512, 200).push(memory, i * 512 + 200, 312);
      file.read(op, op.iov, i * 512);
      ops.push(op);
    }
    while (Counted.left > 0) await context.yield();
    assert.ok(ops.every((op) => op.result === 512));
    assert.ok(Buffer.from(memory.bytes).equals(bytes));
    await file.close();
  },
);

onRing('one system call a turn, besides those that wait', async (context, folder) => {
  const path = join(folder, 'f');
  writeFileSync(path, Buffer.alloc(1 << 20));
  const file = await context.backend.openFile(path, { writable: false });
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(32 * 4096)));
  let left = 20_000;
  let busy = 0;
  class Again extends AioOp {
    readonly iov = new Iov();
    complete(): void {
      if (left-- > 0) file.read(this, this.iov, (left % 256) * 4096);
      else busy--;
    }
  }
  const { turns, submits, sleeps } = context.stats;
  for (let i = 0; i < 32; i++) {
    const op = new Again();
    op.iov.push(memory, i * 4096, 4096);
    busy++;
    file.read(op, op.iov, 0);
  }
  while (busy > 0) await context.yield();
  const spent = context.stats.submits - submits;
  const allowed = context.stats.turns - turns + (context.stats.sleeps - sleeps);
  assert.ok(spent <= allowed, `${spent} system calls in ${allowed} turns and sleeps`);
  await file.close();
});

onRing('what JavaScript gives to libuv is taken up while the ring is idle', async (context) => {
  await context.yield();
  await new Promise((resolve) => setImmediate(resolve));
  await new Promise((resolve) => setTimeout(() => setImmediate(resolve), 5));
  const server = createServer((socket) => socket.end('hello'));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  for (let i = 0; i < 5; i++) {
    const text = await new Promise<string>((resolve) => {
      let all = '';
      connect(port, '127.0.0.1')
        .on('data', (chunk) => {
          all += chunk.toString();
        })
        .on('close', () => resolve(all));
    });
    assert.equal(text, 'hello');
  }
  await new Promise((resolve) => server.close(resolve));
});

onRing('a send that follows a read goes out with it, or not at all', async (context, folder) => {
  const path = join(folder, 'f');
  writeFileSync(path, 'data of a file');
  const file = await context.backend.openFile(path, { writable: false });
  const listener = await context.backend.listen({ kind: 'unix', path: join(folder, 's') });
  const accepting = new WaitOp();
  const accepted = accepting.wait();
  listener.accept(accepting);
  const client = await context.backend.connect(listener.address);
  await accepted;
  const server = listener.takeAccepted();
  const memory = context.backend.memory(new Uint8Array(new SharedArrayBuffer(64)));
  for (const [length, sent] of [
    [14, 14],
    [40, -125],
  ] as const) {
    const [read, send] = [new WaitOp(), new WaitOp()];
    const ends = Promise.all([read.wait(), send.wait()]);
    file.read(read, Iov.of(memory, 0, length), 0);
    assert.equal(server.sendAfter(send, Iov.of(memory, 0, length), read), true);
    assert.deepEqual(await ends, [14, sent]);
  }
  const target = context.backend.memory(new Uint8Array(new SharedArrayBuffer(64)));
  const received = new WaitOp();
  const count = received.wait();
  client.recv(received, target, 0, 64, false);
  assert.equal(await count, 14);
  assert.equal(Buffer.from(target.bytes.slice(0, 14)).toString(), 'data of a file');
  await client.close();
  await server.close();
  await listener.close();
  await file.close();
});

onRing('a watch tells of every addition, and a full count holds up nobody', async (context) => {
  const fds = [eventfd.create(), eventfd.create(false)] as const;
  const closed: number[] = [];
  const closeFd = (fd: number): void => {
    closed.push(fd);
    eventfd.close(fd);
  };
  let seen = 0;
  const watch = new FdWatch(context.backend, fds[0], closeFd, () => seen++);
  for (let i = 1; i <= 3; i++) {
    eventfd.signal(fds[0]);
    while (seen < i) await context.yield();
  }
  // One that blocks, and is full: a write of ours would never end.
  const { scratch, libc } = native()!;
  scratch.view.setUint32(0, 0xffff_fffe, true);
  scratch.view.setUint32(4, 0xffff_ffff, true);
  assert.equal(libc.write(fds[1], scratch.address, 8), 8);
  const signal = new FdSignal(context.backend, fds[1], closeFd);
  for (let i = 0; i < 3; i++) {
    signal.signal();
    await context.yield();
  }
  assert.ok(eventfd.drain(fds[1]) > 0);
  // What was asked for meanwhile is one signal.
  for (let count = 0; count < 2; count += eventfd.drain(fds[1])) {
    const readable = new WaitOp();
    const ready = readable.wait();
    context.backend.pollFd(readable, fds[1], 1);
    await ready;
  }
  watch.close();
  signal.close();
  while (closed.length < 2) await context.yield();
  assert.equal(seen, 3);
});

onRing('pollers are asked in every turn and before the loop sleeps, and quiet operations wake it', async (context) => {
  const fd = eventfd.create();
  const words = new Int32Array(4);
  let [taken, armed] = [0, 0];
  const poller = {
    poll: () => taken < words[0]! && ++taken > 0,
    ready: () => taken < words[0]!,
    arm: () => {
      armed++;
      // Something comes at the last moment, once.
      if (armed === 1) words[0] = 1;
      return taken < words[0]!;
    },
  };
  const watch = new FdWatch(context.backend, fd, eventfd.close, () => {
    words[0]!++;
  });
  context.pollers.push(poller);
  // A timer of the loop's own: while others have immediates it does not sleep.
  const until = async (count: number): Promise<void> => {
    while (taken < count) {
      const gate = new Gate();
      context.timer(() => gate.open(), 'look').armIn(1e6);
      await gate.promise;
    }
  };
  await until(1);
  eventfd.signal(fd);
  await until(2);
  assert.ok(armed >= 1);
  context.pollers.pop();
  watch.close();
  await context.yield();
});

test('a context that has stopped leaves no ring behind', { skip, timeout: 20_000 }, async () => {
  const rings = (): number => readFileSync('/proc/self/maps', 'latin1').split('anon_inode:[io_uring]').length - 1;
  const before = rings();
  for (let i = 0; i < 3; i++) {
    const context = new AioContext(new RingBackend(), { name: 'ring' });
    await context.yield();
    assert.ok(rings() > before);
    await context.stop();
  }
  assert.equal(rings(), before);
});

onRing("others' immediates run before the loop sleeps, whoever makes them", async (context) => {
  const done = new Gate();
  const slept: number[] = [];
  /** Makes an immediate, and notes how often the loop slept before that ran. */
  const soon = (then: () => void): void => {
    const before = context.stats.snapshot().sleeps;
    setImmediate(() => {
      slept.push(context.stats.snapshot().sleeps - before);
      then();
    });
  };
  // In a turn after the loop has slept, in another immediate, in a microtask behind a turn: each time the loop's own
  // immediate stands in the queue before it.
  const first = context.timer(() => soon(() => second.armIn(5e6)), 'first');
  const second = context.timer(() => soon(() => soon(() => third.armIn(5e6))), 'second');
  const third = context.timer(() => {
    markResumed();
    void Promise.resolve().then(() => soon(() => done.open()));
  }, 'third');
  first.armIn(5e6);
  await done.promise;
  assert.deepEqual(slept, [0, 0, 0, 0]);
});
