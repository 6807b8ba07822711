/**
 * What the benchmarks share: options, statistics, what /proc says of a process, tables, and the machine they ran on.
 */
import { type ChildProcess, execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

/** The exit code of a benchmark that could not run here. */
export const SKIPPED = 77;
/** The kernel's clock ticks in one second, the unit of times in /proc/PID/stat on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100;

function compiledRoot(): string {
  return dirname(dirname(fileURLToPath(import.meta.url)));
}

/** The command line: the published one where `npm run bench` says which that is. */
export const MAIN = process.env.BLOCKPLANE_MAIN ?? join(compiledRoot(), 'src', 'cli', 'main.js');

export interface OptionText {
  readonly type: 'string' | 'boolean';
  readonly default?: string | boolean;
  readonly help: string;
}

/** Parses the command line; prints the help and ends when it is asked for or an option is unknown. */
export function options(title: string, known: Readonly<Record<string, OptionText>>): Map<string, string | boolean> {
  const lines = Object.entries(known).map(([name, { type, help, default: value }]) => {
    const head = `  --${name}${type === 'string' ? ' VALUE' : ''}`.padEnd(20);
    return `${head} ${help}${typeof value === 'string' ? ` (${value})` : ''}`;
  });
  const end = (code: number, text: string): never => {
    (code === 0 ? process.stdout : process.stderr).write(`${text}\n${title}\n${lines.join('\n')}\n`);
    process.exit(code);
  };
  try {
    const { values } = parseArgs({ options: { ...known, help: { type: 'boolean' } }, strict: true });
    const found = new Map(Object.entries(values) as [string, string | boolean][]);
    if (found.has('help')) end(0, '');
    for (const [name, { default: value }] of Object.entries(known)) {
      if (value !== undefined && !found.has(name)) found.set(name, value);
    }
    return found;
  } catch (error) {
    return end(2, error instanceof Error ? error.message : String(error));
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** User and system time of a process with all its threads, those that ended too, in seconds. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // The command's name is in parentheses and may hold blanks: count the fields from behind it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Resident memory of a process in MiB. */
export function residentMib(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? Number.NaN) / 1024;
}

/** Whether the program is on the PATH. */
export function hasProgram(program: string): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => existsSync(join(folder, program)));
}

function versionOf(program: string): string {
  const text = hasProgram(program) ? spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout : '';
  const version = /\d+\.\d+(\.\d+)?/.exec(text ?? '')?.[0];
  return `${program} ${version ?? 'absent'}`;
}

/** One line that says what the figures were taken on. */
export function machineLine(programs: readonly string[]): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown CPU';
  const load = loadavg()
    .map((value) => value.toFixed(2))
    .join(' ');
  const parts = [`load before ${load}`, `${cpus().length} x ${model}`, `Linux ${release()}`, `node ${process.version}`];
  return [...parts, ...programs.map(versionOf)].join('; ');
}

export function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((text, at) => Math.max(text.length, ...rows.map((row) => row[at]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!))).join(' | ')} |`;
  const rules = widths.map((width, at) => (at === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`));
  return [line(head), `|${rules.join('|')}|`, ...rows.map(line)].join('\n');
}

/** A figure in at most four significant digits, thousands as k. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return '-';
  if (value >= 100_000) return `${(value / 1000).toFixed(0)}k`;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Waits until `ready` says so. Throws after `timeoutMs` with what was waited for. */
export async function until(what: string, timeoutMs: number, ready: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!(await ready())) {
    if (Date.now() > end) throw new Error(`Could not wait for ${what}: nothing in ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/**
 * Writes a file full of data that does not compress to zeroes, so that no server finds holes; it is in the page cache.
 */
export function fillImage(path: string, bytes: number): void {
  const blockMib = Math.ceil(bytes / 2 ** 20);
  execFileSync('dd', ['if=/dev/urandom', `of=${path}`, 'bs=1M', `count=${blockMib}`, 'status=none']);
}

const children = new Set<ChildProcess>();
const folders = new Set<string>();

/** Whatever ends the benchmark, its servers and clients end with it and its images go. */
function cleanUp(): void {
  for (const child of children) child.kill('SIGKILL');
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}

process.on('exit', cleanUp);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** Has a child ended with this program, if it has not ended before. */
export function track<C extends ChildProcess>(child: C): C {
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

/** A new folder that is removed at the end. */
export function workFolder(parent: string = tmpdir()): string {
  const folder = mkdtempSync(join(parent, 'blockplane-bench-'));
  folders.add(folder);
  return folder;
}
