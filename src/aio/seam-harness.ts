/** What the parts of the seam's conformance suite share: a context a test, operations as promises, memory, a folder. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { errnoName } from '../base/errors.ts';
import { Iov, type Memory } from '../base/memory.ts';
import type { AioBackend, AioFile, AioListener, AioSocket, SocketAddress } from './backend.ts';
import { AioContext } from './context.ts';
import { AioOp, WaitOp } from './op.ts';

/** One test's context and folder. In sim the folder is only a prefix. */
export class Seam {
  readonly context: AioContext;
  readonly backend: AioBackend;
  readonly folder: string;
  readonly t: TestContext;

  constructor(backend: AioBackend, folder: string, t: TestContext) {
    this.backend = backend;
    this.context = new AioContext(backend, { name: t.name });
    this.folder = folder;
    this.t = t;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** Memory of `length` bytes: byte i is (seed + i * 7) mod 251, or 0 without a seed. */
  memory(length: number, seed?: number): Memory {
    const memory = this.backend.memory(new Uint8Array(new SharedArrayBuffer(length)));
    if (seed !== undefined) for (let i = 0; i < length; i++) memory.bytes[i] = (seed + i * 7) % 251;
    return memory;
  }

  create(name: string): Promise<AioFile> {
    return this.backend.openFile(this.path(name), { writable: true, create: true });
  }

  /** Writes all of `iov`, however short the writes are. */
  async writeAll(file: AioFile, iov: Iov, at: number): Promise<void> {
    for (let done = 0; done < iov.length; ) {
      const part = iov.slice(done, iov.length - done);
      const count = await wait((op) => file.write(op, part, at + done, false));
      assert.ok(count > 0, `write at ${at + done}: ${errnoName(count)}`);
      done += count;
    }
  }

  /** Reads until `iov` is full or the file ends; returns the count. */
  async readAll(file: AioFile, iov: Iov, at: number): Promise<number> {
    let done = 0;
    while (done < iov.length) {
      const part = iov.slice(done, iov.length - done);
      const count = await wait((op) => file.read(op, part, at + done));
      assert.ok(count >= 0, `read at ${at + done}: ${errnoName(count)}`);
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  /** `length` bytes of `file` from `at`, as a copy. */
  async bytes(file: AioFile, at: number, length: number): Promise<Uint8Array> {
    const memory = this.memory(length);
    const count = await this.readAll(file, Iov.of(memory), at);
    return memory.bytes.slice(0, count);
  }

  async accept(listener: AioListener): Promise<AioSocket> {
    assert.equal(await wait((op) => listener.accept(op)), 0);
    return listener.takeAccepted();
  }

  /** A connected pair through `listener`: [who connected, who accepted]. */
  async pair(address: SocketAddress = { kind: 'unix', path: this.path('s') }): Promise<Pair> {
    const listener = await this.backend.listen(address);
    const [client, server] = await Promise.all([this.backend.connect(listener.address), this.accept(listener)]);
    await listener.close();
    return { client, server };
  }
}

export interface Pair {
  readonly client: AioSocket;
  readonly server: AioSocket;
}

export async function closeAll(...open: { close(): Promise<void> }[]): Promise<void> {
  for (const one of open) await one.close();
}

/** Starts an operation and resolves with its result. */
export function wait(start: (op: AioOp) => void): Promise<number> {
  const op = new WaitOp();
  const result = op.wait();
  start(op);
  return result;
}

/** An operation that can be looked at while it is in flight. */
export class SeenOp extends AioOp {
  readonly results: number[] = [];
  readonly #ended: (() => void)[] = [];

  complete(result: number): void {
    this.results.push(result);
    for (const resolve of this.#ended.splice(0)) resolve();
  }

  async result(): Promise<number> {
    while (this.results.length === 0) await new Promise<void>((resolve) => this.#ended.push(resolve));
    return this.results[0]!;
  }
}

/** Makes the function that defines the tests of one backend. */
export function seamTests(name: string, makeBackend: () => AioBackend) {
  return (what: string, body: (seam: Seam) => Promise<void>): void => {
    test(`${name}: ${what}`, { timeout: 30_000 }, async (t) => {
      const backend = makeBackend();
      const folder = backend.name === 'sim' ? '/sim' : await mkdtemp(join(tmpdir(), 'bp-'));
      const seam = new Seam(backend, folder, t);
      try {
        await body(seam);
        await seam.context.stop();
      } finally {
        if (backend.name !== 'sim') await rm(folder, { recursive: true, force: true });
      }
    });
  };
}

export type DefineTest = ReturnType<typeof seamTests>;
