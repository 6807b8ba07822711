/**
 * Command lines through two programs: Debian's qemu-img or qemu-io and ours, each in a folder of its own with the same
 * files. What they print, their exit codes and what they leave behind must be the same, unless docs/COMPATIBILITY.md
 * says why not: a line names the entry that does.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run as runQemuImg } from '../../src/cli/qemu-img/program.ts';
import type { Terminal } from '../../src/cli/qemu-img/verb.ts';
import { run as runQemuIo } from '../../src/cli/qemu-io/program.ts';
import { blockplane, peer, peerPath, wasTooCoarse } from '../harness.ts';

/** A command line, its words as a shell has them (single quotes), or one that differs. */
export type Line = string | DifferentLine;

export interface DifferentLine {
  readonly line: string;
  /** The heading in docs/COMPATIBILITY.md that says why. */
  readonly differs: string;
  /** What is not compared, and must differ. Default: what is printed. */
  readonly except?: readonly Part[];
}

type Part = 'stdout' | 'stderr' | 'exit' | 'files';

/** Several lines on the same files, one after the other: `&&` between them. */
const STEPS = ' && ';
const TEMPLATES = 'templates';

interface Outcome {
  readonly stdout: string;
  readonly stderr: string;
  readonly exit: number | null;
}

export interface Fixture {
  /** Made by these, in an empty folder. */
  readonly commands: readonly (readonly [program: string, ...words: string[]])[];
  /** Files that come along with others. */
  readonly below: Readonly<Record<string, readonly string[]>>;
}

/** Ours, without a word on the standard input. */
const PROGRAMS: Readonly<Record<string, (words: readonly string[], terminal: Terminal) => Promise<number>>> = {
  'qemu-img': runQemuImg,
  'qemu-io': (words, terminal) => runQemuIo(words, terminal, () => undefined),
};

export class Parity implements Disposable {
  readonly #root: string;
  readonly #fixture: Fixture;
  readonly #program: string;
  readonly #names: readonly string[];
  #count = 0;
  /** Lines after which every file was the same to the last byte, and lines in all. */
  identical = 0;

  private constructor(root: string, fixture: Fixture, program: string) {
    this.#root = root;
    this.#fixture = fixture;
    this.#program = program;
    this.#names = readdirSync(this.#templates);
  }

  static async of(fixture: Fixture, program = 'qemu-img'): Promise<Parity> {
    const root = mkdtempSync(join(tmpdir(), 'blockplane-parity-'));
    mkdirSync(join(root, TEMPLATES));
    await inFolder(join(root, TEMPLATES), async () => {
      for (const [program, ...words] of fixture.commands) await peer(program, ...words);
    });
    return new Parity(root, fixture, program);
  }

  get #templates(): string {
    return join(this.#root, TEMPLATES);
  }

  /** Runs a line both ways and compares. `spawned`: ours as a process too, not in this one. */
  async compare(given: Line, spawned = false): Promise<void> {
    const line = typeof given === 'string' ? given : given.line;
    const except = typeof given === 'string' ? [] : (given.except ?? ['stdout', 'stderr']);
    const [theirs, ours] = [this.#folder(line), this.#folder(line)];
    let differed = false;
    for (const step of line.split(STEPS)) {
      const words = wordsOf(step);
      const expected = runTheirs(words, theirs, this.#program);
      const got = await (spawned
        ? spawnOurs(words, ours, this.#program)
        : inFolder(ours, () => runHere(words, this.#program)));
      const parts = ['stderr', 'stdout', 'exit'] as const;
      const pick = (from: Outcome): unknown[] =>
        parts.filter((part) => !except.includes(part)).map((part) => withoutRoom(from[part], line.includes(STEPS)));
      assert.deepEqual(pick(got), pick(expected), step);
      if (parts.some((part) => got[part] !== expected[part])) differed = true;
    }
    assert.ok(differed || except.length === 0 || except.includes('files'), `${line}: it does not differ any more`);
    if (!except.includes('files')) this.#compareFiles(line, theirs, ours);
    for (const folder of [theirs, ours]) rmSync(folder, { recursive: true });
  }

  /** With those of the files in it that the line names. */
  #folder(line: string): string {
    const folder = join(this.#root, `${this.#count++}`);
    mkdirSync(folder);
    const named = this.#names.filter((name) => line.includes(name));
    const all = new Set([...named, ...named.flatMap((name) => this.#fixture.below[name] ?? [])]);
    const sources = [...all].map((name) => join(this.#templates, name));
    // Holes stay holes.
    if (sources.length > 0) spawnSync('cp', ['-t', folder, ...sources]);
    return folder;
  }

  #compareFiles(line: string, theirs: string, ours: string): void {
    const names = readdirSync(theirs).sort();
    assert.deepEqual(readdirSync(ours).sort(), names, `${line}: files`);
    const other = names.filter((name) => !readFileSync(join(theirs, name)).equals(readFileSync(join(ours, name))));
    if (other.length === 0) this.identical++;
    for (const name of other) compareImages(line, name, theirs, ours);
  }

  [Symbol.dispose](): void {
    rmSync(this.#root, { recursive: true, force: true });
  }
}

/** Two images that are not the same bytes: what is in them is, and neither is damaged. */
function compareImages(line: string, name: string, theirs: string, ours: string): void {
  const answer = (cwd: string, ...words: string[]): string => {
    const { stdout, stderr } = spawnSync(peerPath('qemu-img')!, words, { cwd, encoding: 'utf8' });
    return stdout + stderr;
  };
  const same = answer(theirs, 'compare', '-U', name, join(ours, name));
  // Of an image that leads nowhere there is nothing to compare.
  if (!/Could not open/.test(same)) assert.equal(same, 'Images are identical.\n', line);
  const about = (cwd: string): string[] => [
    // docs/COMPATIBILITY.md, "Instruction counts of snapshots".
    withoutTimes(answer(cwd, 'info', '--output=json', name)).replaceAll(/^ *"icount": 0,\n/gm, ''),
    ...checkFields(answer(cwd, 'check', '--output=json', name)),
  ];
  assert.deepEqual(about(ours), about(theirs), line);
}

function checkFields(text: string): string[] {
  const field = (name: string): string => new RegExp(`"${name}": \\d+`).exec(text)?.[0] ?? `no ${name}`;
  return ['leaks', 'corruptions', 'check-errors'].map(field);
}

/** What must differ from run to run. */
function withoutTimes(text: string): string {
  return text
    .replaceAll(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'DATE TIME')
    .replaceAll(/("(?:date-n?sec|actual-size)": )\d+/g, '$1N')
    .replaceAll(/"(uuid)": "[^"]*"/g, '"$1": X')
    .replaceAll(/(Run completed in )[\d.]+/g, '$1N')
    .replaceAll(/^(.*, \d+ ops; ).*$/gm, '$1N')
    .replaceAll(/^(\d+,\d+),\d+:\d\d:.*$/gm, '$1,N')
    .replaceAll(/("?(?:master-key-)?iters"?: )\d+/g, '$1N');
}

/** How much a file takes on the disk is the file system's to say, once it has been written to. */
function withoutRoom(value: string | number | null, written: boolean): string | number | null {
  return written && typeof value === 'string'
    ? value.replaceAll(/^(disk size: | *"actual-size": ).*$/gm, '$1N')
    : value;
}

/** Single quotes keep words together. */
export function wordsOf(line: string): string[] {
  return [...line.matchAll(/(?:'[^']*'|[^\s'])+/g)].map(([word]) => word.replaceAll("'", ''));
}

/** Debian's, in a folder. */
export function runTheirs(words: readonly string[], cwd: string, program = 'qemu-img'): Outcome {
  const attempt = () => spawnSync(peerPath(program)!, words, { cwd, encoding: 'utf8' });
  let { status, stdout, stderr } = attempt();
  for (let tries = 0; wasTooCoarse(stderr, tries); tries++) ({ status, stdout, stderr } = attempt());
  return { stdout: withoutTimes(stdout), stderr: withoutTimes(stderr), exit: status };
}

async function spawnOurs(words: readonly string[], cwd: string, program: string): Promise<Outcome> {
  const { code, stdout, stderr } = await inFolder(cwd, () => blockplane(program, ...words));
  return { stdout: withoutTimes(stdout), stderr: withoutTimes(stderr), exit: code };
}

/** Ours, in this process and its current directory. */
export async function runHere(words: readonly string[], program = 'qemu-img'): Promise<Outcome> {
  let [stdout, stderr] = ['', ''];
  const exit = await PROGRAMS[program]!(words, {
    out: (text) => {
      stdout += text;
    },
    err: (text) => {
      stderr += text;
    },
  });
  return { stdout: withoutTimes(stdout), stderr: withoutTimes(stderr), exit };
}

export async function inFolder<T>(folder: string, body: () => Promise<T>): Promise<T> {
  const before = process.cwd();
  process.chdir(folder);
  try {
    return await body();
  } finally {
    process.chdir(before);
  }
}
