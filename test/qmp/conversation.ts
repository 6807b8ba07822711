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
import { MAIN, scratch, wasTooCoarse } from '../harness.ts';

export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };
export type Fields = { readonly [name: string]: Json };

export interface Step {
  readonly command: string;
  readonly args: Fields;
  /** Instead of the command: these words, as they are. */
  readonly line?: string;
  /** Our message is in other words. */
  readonly words?: boolean;
  /** Why the replies are not alike; then only ours is looked at, by `expect`. */
  readonly differs?: string;
  readonly expect?: (reply: Fields) => void;
  /** Instead of a command: what is done in the directory of each. */
  readonly act?: (directory: string) => Promise<unknown>;
  /** Wait until both have told of this event. */
  readonly event?: string;
  /** Wait until both have told that a job has this status. */
  readonly until?: string;
  /** Of each of these jobs, not of any. */
  readonly jobs?: readonly string[];
  /** The job measures how quick its machine is at passphrases: see wasTooCoarse(). */
  readonly measures?: boolean;
}

/** `$DIR` in arguments is the daemon's own directory. */
export function step(command: string, args: Fields = {}, more: Omit<Step, 'command' | 'args'> = {}): Step {
  return { command, args, ...more };
}

/** What no client would say: a line as it is. */
export function line(text: string): Step {
  return { command: '', args: {}, line: text };
}

/** What somebody else does meanwhile, in the directory of each. */
export function meanwhile(
  act: (directory: string) => Promise<unknown>,
  how: Pick<Step, 'event' | 'until' | 'jobs'> = {},
): Step {
  return { command: '', args: {}, act, ...how };
}

/** What both daemons are told, one after the other, and what is looked at then. */
export interface Talk {
  readonly steps: readonly Step[];
  /** Of the command lines. */
  readonly args?: readonly string[];
  /** Fills the directory of each. */
  readonly prepare?: (directory: string) => Promise<void>;
  /** It begins before capabilities are agreed on. */
  readonly fresh?: boolean;
  /** Why it cannot be had here. */
  readonly skip?: string | false;
  /** Looks at what both have left in their directories. */
  readonly after?: (ours: string, theirs: string) => Promise<void>;
}

export interface Conversation extends Talk {
  readonly name: string;
}

export function conversation(name: string, talk: () => Talk): Conversation {
  return { name, ...talk() };
}

/** What conversations have compared. */
export class Compared {
  /** How often each command was answered, and the answer compared. */
  readonly commands = new Map<string, number>();
  /** Those that both have answered with anything but an error. */
  readonly succeeded = new Set<string>();
  readonly events = new Set<string>();
  readonly actions = new Set<string>();
  exchanges = 0;

  add({ command, args }: Step, reply: Fields): void {
    this.exchanges++;
    this.commands.set(command, (this.commands.get(command) ?? 0) + 1);
    if (reply.error !== undefined) return;
    this.succeeded.add(command);
    if (command !== 'transaction') return;
    for (const { type } of args.actions as readonly Fields[]) this.actions.add(String(type));
  }
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

  static async start(
    t: TestContext,
    directory: string,
    command: readonly string[],
    args: readonly string[],
    fresh = false,
  ): Promise<Peer> {
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
    if (!fresh) await peer.execute('qmp_capabilities', {});
    return peer;
  }

  /** The reply, with nothing made alike. */
  async execute(command: string, args: Fields): Promise<Fields> {
    return this.raw(`${JSON.stringify({ execute: command, arguments: args }).replaceAll('$DIR', this.directory)}\n`);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  tell({ command, args, line }: Step): Promise<Fields> {
    return line === undefined ? this.execute(command, args) : this.raw(`${line}\n`);
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
    assert.deepEqual(await this.execute('quit', {}), { return: {} });
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
  args: readonly string[] = [],
  prepare?: (directory: string) => Promise<void>,
  fresh = false,
): Promise<{ readonly theirs: Peer; readonly ours: Peer }> {
  const [first, second] = [join(scratch(t), 'd'), join(scratch(t), 'd')];
  for (const directory of [first, second]) {
    mkdirSync(directory);
    await prepare?.(directory);
  }
  const [theirs, ours] = await Promise.all([
    Peer.start(t, first, ['/usr/bin/qemu-storage-daemon'], args, fresh),
    Peer.start(t, second, [process.execPath, MAIN, 'qemu-storage-daemon'], args, fresh),
  ]);
  return { theirs, ours };
}

/** A conversation that is a test by itself. */
export function converse(
  t: TestContext,
  steps: readonly Step[],
  args: readonly string[] = [],
  prepare?: (directory: string) => Promise<void>,
): Promise<void> {
  return hold(t, { steps, args, ...(prepare ? { prepare } : {}) }, new Compared());
}

/** Has the conversation, and compares; `compared` is told of what was. */
export async function hold(t: TestContext, talk: Talk, compared: Compared): Promise<void> {
  const { theirs, ours } = await pair(t, talk.args, talk.prepare, talk.fresh);
  const different: string[] = [];
  const seen = async (one: Step, before: readonly number[]): Promise<void> => {
    for (const wanted of seenOf(one)) {
      await Promise.all([theirs, ours].map((each, i) => each.told(before[i]!, wanted)));
    }
  };
  for (const [i, one] of talk.steps.entries()) {
    const before = [theirs.events.length, ours.events.length];
    if (one.act) {
      for (const { directory } of [theirs, ours]) await one.act(directory);
      await seen(one, before);
      continue;
    }
    const [reply, own] = await Promise.all([theirs.tell(one), ours.tell(one)]);
    const where = `step ${i}: ${one.line ?? `${one.command} ${JSON.stringify(one.args)}`}`;
    if (one.differs === undefined) {
      const [mine, other] = [alike(own, ours.directory, one), alike(reply, theirs.directory, one)];
      different.push(...differences(mine, other).map((line) => `${where}${line}`));
      compared.add(one, reply);
    }
    one.expect?.(own);
    // What was refused is not waited for.
    const refused = [reply, own].filter(({ error }) => error !== undefined);
    if (refused.length > 0 && seenOf(one).length > 0) assert.fail([...different, JSON.stringify(refused)].join('\n'));
    await seen(one, before);
    if (one.measures) await insist(theirs, one, before[0]!);
  }
  assert.equal(different.join('\n'), '');
  // What has happened by now was told before the answer.
  for (const each of [theirs, ours]) await each.execute('query-version', {});
  const [told, own] = [theirs, ours].map(({ events, directory }) =>
    events.map((event) => alike(event, directory, { words: true })),
  );
  assert.deepEqual(lives(own!), lives(told!), 'events');
  for (const event of told!) compared.events.add(String((event as Fields).event));
  assert.deepEqual(await Promise.all([ours.quit(), theirs.quit()]), [0, 0]);
  compared.add(step('quit'), {});
  await talk.after?.(ours.directory, theirs.directory);
}

/** Begins a job of theirs again that the clock was too coarse for; of the lives before nothing is told. */
async function insist(theirs: Peer, one: Step, from: number): Promise<void> {
  for (let tries = 0; ; tries++) {
    const [job] = (await theirs.execute('query-jobs', {})).return as readonly Fields[];
    if (!wasTooCoarse(String(job?.error), tries)) return;
    await theirs.execute('job-dismiss', { id: job!.id! });
    theirs.events.length = from;
    await theirs.tell(one);
    for (const wanted of seenOf(one)) await theirs.told(from, wanted);
  }
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

/** All that a step waits to be told of. */
function seenOf({ event, until, jobs }: Step): readonly ((event: Fields) => boolean)[] {
  const has = ({ data }: Fields): boolean => (data as Fields).status === until;
  if (until !== undefined) return jobs?.map((id) => (one) => has(one) && (one.data as Fields).id === id) ?? [has];
  return event === undefined ? [] : [(one) => one.event === event];
}

/**
 * What was told of each node, export or job, in its order; what is about two of them may come in any order. Of jobs not
 * those that never ran, which have a short life there and none here; and not that they rest, which each finds out at a
 * moment of its own.
 */
function lives(events: readonly Json[]): readonly (readonly [string, readonly Json[]])[] {
  const subjects = new Map<string, Json[]>();
  for (const event of events) {
    const { data } = event as { readonly data: Fields };
    const subject = String(data.id ?? data.device ?? data['node-name']);
    subjects.set(subject, [...(subjects.get(subject) ?? []), event]);
  }
  const told = [...subjects].map(([subject, all]) => [subject, livesOf(all).flat()] as const);
  return told.filter(([, all]) => all.length > 0).sort(([a], [b]) => a.localeCompare(b));
}

/** Of one subject: each life ends with the status `null`. */
function livesOf(events: readonly Json[]): Json[][] {
  const found: Json[][] = [[]];
  let before: Json | undefined;
  for (const event of events) {
    const status = statusOf(event);
    if (status === 'paused' || status === 'standby') continue;
    if (status === undefined || status !== before) found.at(-1)!.push(event);
    if (status !== undefined) before = status;
    if (status === 'null') found.push([]);
  }
  const ran = (life: readonly Json[]): boolean => life.some((one) => statusOf(one) === 'running');
  return found.filter((life) => life.every((one) => statusOf(one) === undefined) || ran(life));
}

function statusOf(event: Json): Json | undefined {
  return (event as { readonly data: Fields }).data.status;
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
      if (options.words && (/^(desc|msg)$/.test(name) || (name === 'error' && typeof member === 'string'))) {
        return [name, '(words)'];
      }
      // Numbers of nodes in a graph are as good as any other.
      if (/^(id|parent|child)$/.test(name) && typeof member === 'number') return [name, '(own)'];
      // Of a file below an image: how it grows is the writer's own affair.
      if (name === 'virtual-size' && (value as Fields).format === 'file') return [name, '(own)'];
      return [name, alike(member, directory, options)];
    }),
  );
}
