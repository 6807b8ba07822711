/** Dirty bitmaps and depths of allocation over NBD: the same exports of qemu-storage-daemon and of ours. */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, peer, run } from '../harness.ts';
import { alike, type Fields, type Json, type Peer, pair } from './conversation.ts';

const PEERS = needs('qemu-storage-daemon', 'qemu-img', 'qemu-io', 'nbdinfo');
const KEY = '0123456789abcdef'.repeat(4);
const CREDENTIALS = 'tls-creds-psk,id=tls0,endpoint=server,dir=$DIR/psk';
const CLIENT = 'tls-creds-psk,id=tls0,endpoint=client,username=qemu,dir=$DIR/psk';

/** A base of 2 MiB and an overlay of 4 MiB; keys for TLS. */
async function prepare(directory: string): Promise<void> {
  const base = join(directory, 'base.qcow2');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', base, '2M');
  await peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', join(directory, 'top.qcow2'), '4M');
  mkdirSync(join(directory, 'psk'));
  writeFileSync(join(directory, 'psk/keys.psk'), `qemu:${KEY}\n`);
}

/** A daemon and what its clients say, plain or by TLS. */
class Side {
  readonly peer: Peer;
  readonly #tls: boolean;

  constructor(daemon: Peer, tls: boolean) {
    this.peer = daemon;
    this.#tls = tls;
  }

  /** What the monitor answers, with what is its own made alike. */
  async says(command: string, args: Fields, words: boolean): Promise<Json> {
    return alike(await this.peer.execute(command, args), this.peer.directory, { words });
  }

  async must(command: string, args: Fields): Promise<void> {
    const reply = await this.peer.execute(command, args);
    assert.ok('return' in reply, `${command} ${JSON.stringify(args)}: ${JSON.stringify(reply)}`);
  }

  /** Takes an export away with its clients, of whose end the server may not know yet, and waits until it is gone. */
  async unexport(id: string): Promise<void> {
    await this.must('block-export-del', { id, mode: 'hard' });
    await this.peer.told(0, ({ event, data }) => event === 'BLOCK_EXPORT_DELETED' && (data as Fields).id === id);
  }

  #uri(name: string): string {
    const { directory } = this.peer;
    const socket = `socket=${directory}/nbd`;
    return this.#tls
      ? `nbds+unix://qemu@/${name}?${socket}&tls-psk-file=${directory}/psk/keys.psk`
      : `nbd+unix:///${name}?${socket}`;
  }

  #options(name: string): string[] {
    const { directory } = this.peer;
    const node = `driver=nbd,server.type=unix,server.path=${directory}/nbd,export=${name}`;
    if (!this.#tls) return ['--image-opts', node];
    return ['--object', CLIENT.replace('$DIR', directory), '--image-opts', `${node},tls-creds=tls0`];
  }

  async write(name: string, ...ranges: readonly string[]): Promise<void> {
    const [tree, ...others] = this.#options(name).reverse();
    await peer('qemu-io', ...others.reverse(), ...ranges.flatMap((range) => ['-c', `write ${range}`]), tree!);
  }

  /** Neighbours of a kind joined, as answers may be cut anywhere. */
  async map(name: string, context: string): Promise<string> {
    const joined: { offset: number; length: number; type: number }[] = [];
    const json = await peer('nbdinfo', '--json', `--map=${context}`, this.#uri(name));
    for (const { offset, length, type } of JSON.parse(json) as { offset: number; length: number; type: number }[]) {
      const last = joined.at(-1);
      if (last?.type === type) last.length += length;
      else joined.push({ offset, length, type });
    }
    return joined.map(({ offset, length, type }) => `${offset}+${length}=${type}`).join(' ');
  }

  /** What qemu-img takes a bitmap for, as whoever copies by it does. */
  async imgMap(name: string, context: string): Promise<unknown> {
    const [tree, ...others] = this.#options(name).reverse();
    const with_ = `${tree},x-dirty-bitmap=${context}`;
    const { stdout, stderr, code } = await run('qemu-img', ['map', '--output=json', ...others.reverse(), with_]);
    return code === 0 ? JSON.parse(stdout).map((extent: object) => ({ ...extent, offset: undefined })) : stderr;
  }

  async contexts(): Promise<unknown> {
    const { exports } = JSON.parse(await peer('nbdinfo', '--list', '--json', this.#uri('')));
    return exports.map((entry: Fields) => [entry['export-name'], entry.contexts]);
  }

  async end(): Promise<void> {
    assert.equal(await this.peer.quit(), 0);
  }
}

/** Compares what both answer. */
async function same(sides: readonly Side[], what: string, ask: (side: Side) => Promise<unknown>): Promise<unknown> {
  const [theirs, ours] = await Promise.all(sides.map(ask));
  assert.deepEqual(ours, theirs, what);
  return ours;
}

const file = (filename: string) => ({ driver: 'file', filename: `$DIR/${filename}.qcow2` });
const EXPORT = { type: 'nbd', id: 'e', 'node-name': 'top', writable: true };

for (const iothread of [false, true]) {
  for (const tls of [false, true]) {
    const where = `${iothread ? 'of a node in an iothread' : 'of a node in main-loop'}${tls ? ', by TLS' : ''}`;
    test(`bitmaps and depths ${where} are as in qemu-storage-daemon`, PEERS, async (t) => {
      const { theirs, ours } = await pair(t, ['--object', CREDENTIALS, '--object', 'iothread,id=io1'], prepare);
      const sides = [new Side(theirs, tls), new Side(ours, tls)];
      const must = (command: string, args: Fields) => Promise.all(sides.map((side) => side.must(command, args)));
      const says = (command: string, args: Fields, words = false) =>
        same(sides, `${command} ${JSON.stringify(args)}`, (side) => side.says(command, args, words));

      await must('blockdev-add', { driver: 'qcow2', 'node-name': 'base', file: file('base') });
      await must('blockdev-add', { driver: 'qcow2', 'node-name': 'top', file: file('top'), backing: 'base' });
      // 7.2 ends over exports of a node that was moved so.
      if (iothread) await sides[1]!.must('x-blockdev-set-iothread', { 'node-name': 'top', iothread: 'io1' });
      for (const name of ['t', 'dis']) await must('block-dirty-bitmap-add', { node: 'top', name });
      await must('block-dirty-bitmap-add', { node: 'base', name: 'b', granularity: 4096 });
      const addr = { type: 'unix', data: { path: '$DIR/nbd' } };
      await must('nbd-server-start', tls ? { addr, 'tls-creds': 'tls0' } : { addr });

      await must('block-export-add', { ...EXPORT, id: 'w', 'node-name': 'base' });
      await Promise.all(sides.map((side) => side.write('base', '4k 4k', '1M 1M')));
      await Promise.all(sides.map((side) => side.unexport('w')));

      const refused = { ...EXPORT, writable: false };
      await says('block-export-add', { ...EXPORT, bitmaps: [{ node: 'nowhere', name: 't' }] });
      await says('block-export-add', { ...EXPORT, bitmaps: [{ node: 'top', name: 'none' }] });
      const recording = await says('block-export-add', { ...refused, bitmaps: ['t'] }, true);
      assert.match(JSON.stringify(recording), /error/);
      await must('block-export-add', {
        ...EXPORT,
        bitmaps: ['t', { node: 'base', name: 'b' }],
        'allocation-depth': true,
      });
      await Promise.all(sides.map((side) => side.write('top', '0 64k', '512k 128k', '3M 64k')));
      await says('block-dirty-bitmap-disable', { node: 'top', name: 'dis' });
      await must('block-export-add', { ...refused, id: 'f', name: 'f', bitmaps: ['dis'] });

      await same(sides, 'contexts', (side) => side.contexts());
      const contexts = ['qemu:dirty-bitmap:t', 'qemu:dirty-bitmap:b', 'qemu:allocation-depth', 'base:allocation'];
      for (const context of contexts) {
        const map = await same(sides, `map of ${context}`, (side) => side.map('top', context));
        assert.match(String(map), / /, `${context} is of one kind`);
      }
      await same(sides, 'map of the other export', (side) => side.map('f', 'qemu:dirty-bitmap:dis'));
      for (const context of contexts.slice(0, 3)) {
        await same(sides, `qemu-img map by ${context}`, (side) => side.imgMap('top', context));
      }

      for (const [node, name] of [
        ['top', 't'],
        ['base', 'b'],
        ['top', 'dis'],
      ] as const) {
        const busy = await says('block-dirty-bitmap-remove', { node, name }, true);
        assert.match(JSON.stringify(busy), /error/);
      }
      for (const id of ['f', 'e']) await Promise.all(sides.map((side) => side.unexport(id)));
      for (const [node, name] of [
        ['top', 't'],
        ['base', 'b'],
        ['top', 'dis'],
      ] as const) {
        await says('block-dirty-bitmap-remove', { node, name });
      }
      for (const side of sides) await side.end();
    });
  }
}
