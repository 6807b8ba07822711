/**
 * The same conversation with qemu-storage-daemon and with ours. Replies and events are compared as structures: what is
 * different by nature (times, sizes on the disk, names that are made up, the directory) is made alike before.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { MAIN, scratch } from '../harness.ts';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };
export type Fields = { readonly [name: string]: Json };

export interface Step {
  readonly command: string;
  readonly args: Fields;
  /** Our message is in other words. */
  readonly words?: boolean;
  /** Why the replies are not alike; then only ours is looked at, by `expect`. */
  readonly differs?: string;
  readonly expect?: (reply: Fields) => void;
  /** Wait until both have told of this event. */
  readonly event?: string;
  /** Wait until both have told that a job has this status. */
  readonly until?: string;
}

/** `$DIR` in arguments is the daemon's own directory. */
export function step(command: string, args: Fields = {}, more: Omit<Step, 'command' | 'args'> = {}): Step {
  return { command, args, ...more };
}

export class Peer {
  readonly directory: string;
  readonly events: Fields[] = [];
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  #greeted = false;
  #text = '';
  #replies: Fields[] = [];
  #wake: () => void = () => undefined;

  private constructor(directory: string, child: ChildProcess, socket: Socket) {
    this.directory = directory;
    this.#child = child;
    this.#socket = socket;
    socket.setEncoding('utf8').on('data', (text: string) => this.#took(text));
    socket.on('close', () => this.#wake());
  }

  static async start(t: TestContext, directory: string, command: readonly string[], args: readonly string[]) {
    const path = join(directory, 'qmp.sock');
    const [program, ...first] = command;
    const chardev = ['--chardev', `socket,id=mon,path=${path},server=on,wait=off`, '--monitor', 'chardev=mon'];
    const all = [...first, ...args.map((arg) => arg.replaceAll('$DIR', directory)), ...chardev];
    const child = spawn(program!, all, { stdio: ['ignore', 'ignore', 'pipe'], cwd: directory });
    let errors = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      errors += text;
    });
    t.after(() => child.kill('SIGKILL'));
    const socket = await connect(path, child, () => errors);
    const peer = new Peer(directory, child, socket);
    while (!peer.#greeted) await peer.#something();
    await peer.execute('qmp_capabilities', {});
    return peer;
  }

  /** The reply, with nothing made alike. */
  async execute(command: string, args: Fields): Promise<Fields> {
    return this.raw(`${JSON.stringify({ execute: command, arguments: args }).replaceAll('$DIR', this.directory)}\n`);
  }

  async raw(text: string): Promise<Fields> {
    this.#socket.write(text);
    return this.#next();
  }

  /** The replies to all that is in `bytes`, none or many. */
  async replies(bytes: string | Uint8Array): Promise<Fields[]> {
    this.#socket.write(bytes);
    this.#socket.write('\n{"execute":"query-version","id":"the last"}\n');
    const replies: Fields[] = [];
    for (;;) {
      const reply = await this.#next();
      if (reply.id === 'the last') return replies;
      replies.push(reply);
    }
  }

  /** The most memory that it has had so far. */
  get peakBytes(): number {
    const status = readFileSync(`/proc/${this.#child.pid}/status`, 'utf8');
    return Number(/^VmHWM:\s+(\d+)/m.exec(status)![1]) * 1024;
  }

  /** The next reply, to what was sent together with others. */
  reply(): Promise<Fields> {
    return this.#next();
  }

  /** Resolves once `seen` is true of one of the events from number `from` on. */
  async told(from: number, seen: (event: Fields) => boolean): Promise<void> {
    while (!this.events.slice(from).some(seen)) await this.#something();
  }

  async quit(): Promise<number | null> {
    const exited = once(this.#child, 'exit') as Promise<[number | null]>;
    await this.execute('quit', {});
    return (await exited)[0];
  }

  #took(text: string): void {
    if (!text.includes('\n')) {
      this.#text += text;
      return;
    }
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop()!;
    for (const line of lines) {
      const message = JSON.parse(line) as Fields;
      // One who comes early may be greeted twice there.
      if ('QMP' in message) this.#greeted = true;
      else if ('event' in message) this.events.push(message);
      else this.#replies.push(message);
    }
    this.#wake();
  }

  async #next(): Promise<Fields> {
    while (this.#replies.length === 0) await this.#something();
    return this.#replies.shift()!;
  }

  async #something(): Promise<void> {
    if (this.#socket.destroyed) {
      throw new Error(
        `${this.#child.spawnargs[0]} has closed its monitor: ${this.#child.exitCode ?? this.#child.signalCode}`,
      );
    }
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }
}

async function connect(path: string, child: ChildProcess, errors: () => string): Promise<Socket> {
  for (;;) {
    if (child.exitCode !== null) throw new Error(`the daemon ended with ${child.exitCode}: ${errors()}`);
    const socket = createConnection(path);
    const outcome = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    if (outcome) return socket;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Both daemons, each with a directory of its own that `prepare` has filled. */
export async function pair(
  t: TestContext,
  args: readonly string[],
  prepare: (directory: string) => Promise<void> = async () => undefined,
): Promise<{ readonly theirs: Peer; readonly ours: Peer }> {
  const [first, second] = [join(scratch(t), 'd'), join(scratch(t), 'd')];
  for (const directory of [first, second]) {
    mkdirSync(directory);
    await prepare(directory);
  }
  const [theirs, ours] = await Promise.all([
    Peer.start(t, first, ['/usr/bin/qemu-storage-daemon'], args),
    Peer.start(t, second, [process.execPath, MAIN, 'qemu-storage-daemon'], args),
  ]);
  return { theirs, ours };
}

/** Has the conversation, and compares. */
export async function converse(
  t: TestContext,
  steps: readonly Step[],
  args: readonly string[] = [],
  prepare?: (directory: string) => Promise<void>,
): Promise<void> {
  const { theirs, ours } = await pair(t, args, prepare);
  const different: string[] = [];
  for (const [i, one] of steps.entries()) {
    const before = [theirs.events.length, ours.events.length];
    const [reply, own] = await Promise.all([
      theirs.execute(one.command, one.args),
      ours.execute(one.command, one.args),
    ]);
    const where = `step ${i}: ${one.command} ${JSON.stringify(one.args)}`;
    if (one.differs === undefined) {
      const [mine, other] = [alike(own, ours.directory, one), alike(reply, theirs.directory, one)];
      different.push(...differences(mine, other).map((line) => `${where}${line}`));
    }
    one.expect?.(own);
    const seen = seenOf(one);
    if (seen) await Promise.all([theirs.told(before[0]!, seen), ours.told(before[1]!, seen)]);
  }
  assert.equal(different.join('\n'), '');
  const [told, own] = [theirs, ours].map(({ events, directory }) => events.map((event) => alike(event, directory)));
  assert.deepEqual(lives(inOrder(own!)), lives(inOrder(told!)), 'events');
  assert.equal(await ours.quit(), 0);
  assert.equal(await theirs.quit(), 0);
}

/** Where two values differ: paths, and what stands there. */
function differences(ours: Json, theirs: Json, path = ''): string[] {
  // Where a file name says not all of it, there the whole tree of options is in its place.
  const json = typeof theirs === 'string' && theirs.startsWith('json:{') && typeof ours === 'string';
  if (json || isDeepStrictEqual(ours, theirs)) return [];
  if (typeof ours !== 'object' || typeof theirs !== 'object' || ours === null || theirs === null) {
    return [`${path}: ours ${JSON.stringify(ours)}, theirs ${JSON.stringify(theirs)}`];
  }
  const names = new Set([...Object.keys(ours), ...Object.keys(theirs)]);
  const at = (value: Json, name: string): Json => (value as Fields)[name] ?? '(absent)';
  return [...names].flatMap((name) => differences(at(ours, name), at(theirs, name), `${path}.${name}`));
}

function seenOf({ event, until }: Step): ((event: Fields) => boolean) | undefined {
  if (until !== undefined) return ({ data }) => (data as Fields).status === until;
  return event === undefined ? undefined : (one) => one.event === event;
}

/**
 * Of what jobs tell of themselves: not those that were refused, which have a short life there and none here; and not
 * that they rest, which each finds out at a moment of its own.
 */
function lives(events: readonly Json[]): Json[] {
  const statusOf = (event: Json | undefined): unknown => ((event as Fields | undefined)?.data as Fields)?.status;
  const awake = events.filter((event) => !/^(paused|standby)$/.test(String(statusOf(event))));
  const changes = awake.filter((event) => statusOf(event) !== undefined);
  const told = (event: Json): boolean => {
    const at = changes.indexOf(event);
    if (at < 0) return true;
    const [before, status, after] = [at - 1, at, at + 1].map((i) => statusOf(changes[i]));
    const stillborn = (status === 'created' && after === 'null') || (status === 'null' && before === 'created');
    return !stillborn && status !== before;
  };
  return awake.filter(told);
}

/** By kind, and by whom they are about: what does not hang together may come in another order. */
function inOrder(events: readonly Json[]): Json[] {
  const keyOf = (event: Json): string => {
    const { event: kind, data } = event as { readonly event: string; readonly data: Fields };
    return `${kind} ${data.id ?? data.device ?? ''}`;
  };
  return [...events].sort((a, b) => keyOf(a).localeCompare(keyOf(b)));
}

/** By name where there is one. */
function orderOf(item: Json): string {
  const { 'node-name': node, name, label } = (typeof item === 'object' && item !== null ? item : {}) as Fields;
  return `${node ?? name ?? label ?? ''} ${JSON.stringify(item)}`;
}

/** Numbers that no two images, or moments, have in common. */
const OWN = new Set([
  ...['current-progress', 'total-progress', 'len', 'offset', 'actual-size', 'timestamp', 'date-sec', 'date-nsec'],
  ...['vm-clock-sec', 'vm-clock-nsec', 'micro', 'package', 'major', 'minor'],
]);

/** What newer releases tell, too. */
const NEWER = new Set(['active']);

export function alike(value: Json, directory: string, options: Pick<Step, 'words'> = {}): Json {
  // Where it has no file, there is another way to write what it is.
  if (typeof value === 'string' && /^(json:\{.*"null-co".*|null-co:\/\/)$/.test(value)) return '(null-co)';
  if (typeof value === 'string') return value.replaceAll(directory, '$DIR').replace(/#block\d+/g, '#block');
  if (Array.isArray(value)) {
    const items = value.map((item) => alike(item, directory, options));
    return items.every((item) => typeof item !== 'object') && items.some((item) => typeof item !== 'string')
      ? items
      : items.sort((a, b) => orderOf(a).localeCompare(orderOf(b)));
  }
  if (typeof value !== 'object' || value === null) return value;
  const names = Object.keys(value)
    .filter((name) => !NEWER.has(name))
    .sort();
  return Object.fromEntries(
    names.map((name) => {
      if (OWN.has(name)) return [name, '(own)'];
      const member = (value as Fields)[name]!;
      if (options.words && name === 'desc') return [name, '(words)'];
      // Numbers of nodes in a graph are as good as any other.
      if (/^(id|parent|child)$/.test(name) && typeof member === 'number') return [name, '(own)'];
      // Of a file below an image: how it grows is the writer's own affair.
      if (name === 'virtual-size' && (value as Fields).format === 'file') return [name, '(own)'];
      return [name, alike(member, directory, options)];
    }),
  );
}
