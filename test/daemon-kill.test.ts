/**
 * A daemon that is killed at any moment of a job, while a guest writes, leaves images in which `qemu-img check` finds
 * no corruption, the guest's disk as it has flushed it, and what lies below it as it was.
 *
 * BLOCKPLANE_TEST_TIER=long: 20 kills of each job; BLOCKPLANE_KILLS for another number, BLOCKPLANE_SEED to begin with
 * another seed.
 */
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Prng } from '../src/base/prng.ts';
import { type Disk, open } from '../src/index.ts';
import { withDaemon } from './daemon-process.ts';
import { needs, peer, run, scratch } from './harness.ts';

const LONG = process.env.BLOCKPLANE_TEST_TIER === 'long';
const KILLS = Number(process.env.BLOCKPLANE_KILLS ?? (LONG ? 20 : 1));
const SEED = Number(process.env.BLOCKPLANE_SEED ?? 1);
const MiB = 1024 * 1024;
const SIZE = 16 * MiB;
const BLOCK = 4096;
/** A job takes a second or two, and is killed before. */
const SPEED = 6 * MiB;
const KILL_MS = 600;
const CHECK_LEAKS = 3;
const LAYERS = ['base', 'mid', 'top'] as const;

type Send = (command: string, args: object) => Promise<unknown>;

/** What is begun, and which images must show the same as before through what they name. */
interface Kind {
  readonly begin: (send: Send, directory: string) => Promise<unknown>;
  readonly unchanged: readonly string[];
  /** Milliseconds in which it is killed. Default {@link KILL_MS}. */
  readonly within?: number;
}

const job = { 'job-id': 'j', speed: SPEED } as const;

const KINDS: Readonly<Record<string, Kind>> = {
  stream: { begin: (send) => send('block-stream', { ...job, device: 'top' }), unchanged: ['base', 'mid'] },
  commit: { begin: (send) => send('block-commit', { ...job, device: 'top', 'top-node': 'mid' }), unchanged: ['mid'] },
  'active commit': {
    begin: (send) => send('block-commit', { ...job, device: 'top', 'base-node': 'base' }),
    unchanged: [],
  },
  mirror: {
    begin: (send) => send('blockdev-mirror', { ...job, device: 'top', target: 'new', sync: 'full' }),
    unchanged: ['base', 'mid'],
  },
  'write-blocking mirror': {
    begin: (send) =>
      send('blockdev-mirror', { ...job, device: 'top', target: 'new', sync: 'top', 'copy-mode': 'write-blocking' }),
    unchanged: ['base', 'mid'],
  },
  backup: {
    begin: (send) => send('blockdev-backup', { ...job, device: 'top', target: 'new', sync: 'full' }),
    unchanged: ['base', 'mid'],
  },
  create: {
    begin: async (send, directory) => {
      writeFileSync(join(directory, 'made'), '');
      await send('blockdev-add', { driver: 'file', 'node-name': 'made', filename: join(directory, 'made') });
      const options = { driver: 'qcow2', file: 'made', size: 64 * MiB, preallocation: 'metadata' };
      await send('blockdev-create', { 'job-id': 'j', options });
    },
    unchanged: ['base', 'mid'],
  },
  amend: {
    begin: (send) =>
      send('x-blockdev-amend', { 'job-id': 'j', 'node-name': 'top', options: { driver: 'qcow2', version: 'v2' } }),
    unchanged: ['base', 'mid'],
    within: 40,
  },
};

/** A guest that writes blocks, each of one value, and flushes now and then. */
class Guest {
  /** Of each block: what may be read of it: what the last flush has kept, and what came after. */
  readonly #allowed: Set<number>[];
  readonly #disk: Disk;
  readonly #random: Prng;

  constructor(disk: Disk, start: Uint8Array, random: Prng) {
    this.#disk = disk;
    this.#random = random;
    this.#allowed = Array.from({ length: SIZE / BLOCK }, (_, block) => new Set([start[block * BLOCK]!]));
  }

  /** Until the disk fails. */
  async use(): Promise<void> {
    const written = new Map<number, number>();
    for (let n = 1; ; n++) {
      const block = this.#random.below(SIZE / BLOCK);
      const value = 1 + this.#random.below(255);
      this.#allowed[block]!.add(value);
      await this.#disk.write(new Uint8Array(BLOCK).fill(value), 0, BLOCK, block * BLOCK);
      written.set(block, value);
      if (n % 16 !== 0) continue;
      await this.#disk.flush();
      for (const [at, last] of written) this.#allowed[at] = new Set([last]);
      written.clear();
    }
  }

  check(found: Uint8Array, what: string): void {
    for (const [block, allowed] of this.#allowed.entries()) {
      const bytes = found.subarray(block * BLOCK, (block + 1) * BLOCK);
      const value = bytes[0]!;
      assert.ok(allowed.has(value), `${what}: block ${block} is ${value}, not one of ${[...allowed].join(', ')}`);
      assert.ok(
        bytes.every((byte) => byte === value),
        `${what}: block ${block} is torn`,
      );
    }
  }
}

async function makeChain(directory: string): Promise<void> {
  const path = (name: string): string => join(directory, `${name}.qcow2`);
  for (const [n, name] of LAYERS.entries()) {
    const below = n === 0 ? [] : ['-b', `${LAYERS[n - 1]}.qcow2`, '-F', 'qcow2'];
    await peer('qemu-img', 'create', '-q', '-f', 'qcow2', ...below, path(name), String(SIZE));
    const write = `write -P ${n + 1} ${n * 3}M 6M`;
    await peer('qemu-io', '-f', 'qcow2', '-c', write, path(name));
  }
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', path('new'), String(SIZE));
}

async function content(directory: string, name: string): Promise<Buffer> {
  const raw = join(directory, `${name}.raw`);
  await peer('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', join(directory, `${name}.qcow2`), raw);
  return readFileSync(raw);
}

function node(directory: string, name: string, backing?: object): object {
  const file = { driver: 'file', filename: join(directory, `${name}.qcow2`) };
  return { driver: 'qcow2', 'node-name': name, file, ...(backing === undefined ? {} : { backing }) };
}

/** Runs the job and the guest, and kills the daemon at a moment of `random`'s. */
async function killed(directory: string, kind: Kind, start: Uint8Array, random: Prng): Promise<Guest> {
  const nbd = join(directory, 'nbd');
  const top = node(directory, 'top', node(directory, 'mid', node(directory, 'base')));
  const args = [
    ...[top, node(directory, 'new')].flatMap((tree) => ['--blockdev', JSON.stringify(tree)]),
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
    ...['--export', 'type=nbd,id=e,node-name=top,writable=on,name=disk'],
  ];
  return withDaemon(directory, args, async (client, child) => {
    const disk = await open(`nbd+unix:///disk?socket=${nbd}`, { format: 'raw' });
    const guest = new Guest(disk, start, random);
    const using = guest.use().catch(() => undefined);
    await kind.begin((command, given) => client.execute(command as never, given as never), directory);
    await delay(random.below(kind.within ?? KILL_MS));
    child.kill('SIGKILL');
    await using;
    await disk.close().catch(() => undefined);
    return guest;
  });
}

for (const [name, kind] of Object.entries(KINDS)) {
  test(`a daemon killed at any moment of a job keeps the disk: ${name}`, {
    ...needs('qemu-img', 'qemu-io'),
    timeout: 60_000 + KILLS * 10_000,
  }, async (t) => {
    const template = scratch(t);
    await makeChain(template);
    const before = new Map<string, Buffer>();
    for (const layer of LAYERS) before.set(layer, await content(template, layer));
    for (let n = 0; n < KILLS; n++) {
      const seed = SEED + n;
      const directory = scratch(t);
      for (const image of [...LAYERS, 'new']) {
        copyFileSync(join(template, `${image}.qcow2`), join(directory, `${image}.qcow2`));
      }
      const guest = await killed(directory, kind, before.get('top')!, new Prng(seed));
      for (const image of [...LAYERS, 'new']) {
        const { code, stdout } = await run('qemu-img', ['check', '-f', 'qcow2', join(directory, `${image}.qcow2`)]);
        assert.ok(code === 0 || code === CHECK_LEAKS, `seed ${seed}, ${image}: ${stdout}`);
      }
      guest.check(await content(directory, 'top'), `seed ${seed}`);
      for (const layer of kind.unchanged) {
        assert.ok((await content(directory, layer)).equals(before.get(layer)!), `seed ${seed}: ${layer} has changed`);
      }
    }
  });
}
