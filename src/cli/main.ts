#!/usr/bin/env node
/** The `blockplane` command. Verbs load what they need when they are called, so that it starts quickly. */
import { readFileSync, realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { errorLine, PROGRAM, UsageError } from './report.ts';
import type { EarlyThread } from './serve.ts';
import type { RawServeOptions } from './serve-options.ts';

const EXIT_USAGE = 2;

function version(): string {
  // Beside src or above dist/src: wherever the package begins.
  for (let at = new URL('.', import.meta.url), up = 0; up < 6; up++, at = new URL('..', at)) {
    try {
      const text = readFileSync(new URL('package.json', at), 'utf8');
      const { name, version } = JSON.parse(text) as { readonly name?: string; readonly version?: string };
      if (name === PROGRAM && version) return version;
    } catch {
      // Not here.
    }
  }
  return 'unknown';
}

/**
 * A thread takes as long to start as the command line to be read, so the two are done side by side. Only where it is
 * plain which thread will be wanted; `serve` checks.
 */
async function startEarly(argv: readonly string[]): Promise<EarlyThread | undefined> {
  const plain = argv[0] === 'serve' && !argv.some((word) => /^(-h|--help|--iothreads?|--poll-max-ns)(=|$)/.test(word));
  if (!plain) return undefined;
  const at = argv.findIndex((word) => word === '--aio' || word.startsWith('--aio='));
  const aio = at < 0 ? undefined : argv[at]!.startsWith('--aio=') ? argv[at]!.slice(6) : argv[at + 1];
  if (aio !== undefined && aio !== 'ring' && aio !== 'pool') return undefined;
  const { IOThread } = await import('../lib/iothread.ts');
  const thread = IOThread.start({ name: 'io0', aio });
  thread.catch(() => undefined);
  return { name: 'io0', aio, thread };
}

const SERVE_HELP = `
Serves each IMAGE as an NBD export until SIGINT or SIGTERM, which let requests in
flight finish and put everything on stable storage. Prints one NBD URI a line, in the order of the images, as
soon as clients can connect. Without IMAGE: a fresh, sparse, temporary image.

Examples:
  blockplane serve disk.img
  blockplane serve --listen 127.0.0.1:10809 --export-name disk --read-only disk.img
  blockplane serve --iothreads 2 --socket /run/nbd.sock a.img b.img   # a: nbd.sock, b: nbd.sock.io1`;

/** Runs one command line (without node and the script); answers its exit code: 0, 1 for a failure, 2 for bad usage. */
export async function main(argv: readonly string[]): Promise<number> {
  // Somebody who has read enough, as `| head -1` has, or a terminal that is gone.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
  const early = await startEarly(argv);
  const { Command, CommanderError } = await import('commander');
  let exitCode = 0;
  const collect = (value: string, before: readonly string[]): readonly string[] => [...before, value];
  const program = new Command(PROGRAM)
    .description('Block storage for Node.js: disk images over NBD, each in an I/O thread of its own')
    .version(version())
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, `${PROGRAM}: `)) });
  program
    .command('serve')
    .description('serve disk images over NBD')
    .argument('[IMAGE...]', 'disk image files or block devices')
    .option('-f, --format <format>', 'format of the images: raw (default: raw, unless one looks like another format)')
    .option('-k, --socket <path>', 'listen on a unix socket (default: one in a private temporary directory)')
    .option('-l, --listen <host:port>', 'listen on TCP; port 0 takes a free one')
    .option('-x, --export-name <name>', 'name of the export; repeat for each IMAGE', collect, [])
    .option('-D, --description <text>', 'description of the export; repeat for each IMAGE', collect, [])
    .option('-B, --bitmap <name>', 'offer this dirty bitmap of each IMAGE; repeat for several', collect, [])
    .option('-r, --read-only', 'refuse writes')
    .option('-U, --force-share', 'ignore the locks of other programs; only with --read-only')
    .option('--aio <backend>', 'ring (io_uring) or pool (node); default: ring where the system allows it')
    .option('--cache <mode>', 'writeback (default), none, writethrough, directsync or unsafe')
    .option('--discard <mode>', 'unmap (default) or ignore')
    .option('--detect-zeroes <mode>', 'off (default), on or unmap')
    .option('--iothread <name>', 'IOThread of an image; repeat for each IMAGE, same name same thread', collect, [])
    .option('--iothreads <count>', 'spread the images over so many IOThreads (default: 1)')
    .option('--poll-max-ns <ns>', 'longest time an IOThread spins before it sleeps (default: 32768)')
    .option('--max-connections <count>', 'clients at a time; 0 for no limit (default: 100)')
    .option('--handshake-seconds <seconds>', 'time a client has for the handshake (default: 10)')
    .option('--memory <size>', 'payload memory of all connections together, 32M to 1G (default: 64M)')
    .option('--progress <mode>', 'none, line, or json for a JSON line a second (default: line on a terminal)')
    .option('--size <size>', 'size of the temporary image when there is no IMAGE (default: 1G)')
    .addHelpText('after', SERVE_HELP)
    .action(async (images: string[], options: RawServeOptions) => {
      const { serve } = await import('./serve.ts');
      exitCode = await serve(images, options, early);
    });
  try {
    await program.parseAsync(argv, { from: 'user' });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    process.stderr.write(errorLine(error));
    return error instanceof UsageError ? EXIT_USAGE : 1;
  } finally {
    await stopEarly(early);
  }
}

async function stopEarly(early: EarlyThread | undefined): Promise<void> {
  // Whoever used it has said what went wrong with it.
  const thread = await early?.thread.catch(() => undefined);
  await thread?.stop().catch(() => undefined);
}

function isEntry(): boolean {
  const script = process.argv[1];
  if (script === undefined) return false;
  try {
    return realpathSync(script) === fileURLToPath(import.meta.url);
  } catch {
    return false;
  }
}

if (isEntry()) {
  process.exitCode = await main(process.argv.slice(2));
}
