#!/usr/bin/env node
/**
 * The `blockplane` command as it is published: its code in one file, run with what V8 kept of compiling it. To find,
 * read and compile modules would take longer than most commands.
 *
 * What V8 kept (bytecode) stands beside the code, as whoever may write there may change the code, too. It is made with
 * the bundle; under another release of Node, by the first command that may write there.
 */
import { readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { constants, Script } from 'node:vm';

/** The name of the file with the code; it has a hash of it. By tools/bundle.mjs. */
declare const CODE_FILE: string;

/** Parts of Node that take some milliseconds to load, and that most commands do without: loaded when one is used. */
const LATER: ReadonlySet<string> = new Set([
  ...['node:child_process', 'node:crypto', 'node:fs/promises', 'node:net', 'node:os', 'node:stream'],
  ...['node:worker_threads', 'node:zlib'],
]);

type CommandLine = typeof import('./command-line.ts');
type Body = (exports: object, require: (id: string) => unknown, module: { exports: object }, url: string) => void;

function load(): CommandLine {
  const url = new URL(CODE_FILE, import.meta.url);
  const path = fileURLToPath(url);
  const cachePath = `${path}.${process.version}-${process.arch}.cache`;
  const cachedData = readIfThere(cachePath);
  const script = new Script(readFileSync(path, 'latin1'), {
    filename: path,
    cachedData,
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
  // In the end the functions that were called are in it as well.
  if (!cachedData) process.once('exit', () => keep(cachePath, script.createCachedData()));
  const module = { exports: {} };
  const require = createRequire(url);
  const body = script.runInThisContext() as Body;
  body(module.exports, (id) => (LATER.has(id) ? later(id) : require(id)), module, url.href);
  return module.exports as CommandLine;
}

/** Looks like a part of Node, and loads it when it is looked into. */
function later(id: string): object {
  const part = (): object => process.getBuiltinModule(id)!;
  return new Proxy(
    {},
    {
      get: (_, name) => Reflect.get(part(), name),
      ownKeys: () => Reflect.ownKeys(part()),
      getOwnPropertyDescriptor: (_, name) => ({
        ...Reflect.getOwnPropertyDescriptor(part(), name),
        configurable: true,
      }),
    },
  );
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}

/** Whole or not at all. Where it cannot be written, commands start as slowly as this one did. */
function keep(path: string, data: Buffer): void {
  const half = `${path}.${process.pid}`;
  try {
    writeFileSync(half, data, { flag: 'wx' });
    renameSync(half, path);
  } catch {
    rmSync(half, { force: true });
  }
}

export const { main } = load();

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  // For a loop that runs out of work before the command has ended.
  process.exitCode = 1;
  void main(process.argv.slice(2), process.argv[1]).then((code) => {
    process.exitCode = code;
  });
}
