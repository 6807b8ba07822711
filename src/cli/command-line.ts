/** The `blockplane` command. Verbs load what they need when they are called, so that it starts quickly. */
import { programOf } from './programs.ts';
import { errorLine, PROGRAM, UsageError } from './report.ts';
import type { EarlyThread } from './serve.ts';
import { packageVersion } from './version.ts';

const EXIT_USAGE = 2;

const PROGRAMS_HELP = `
Programs with command lines of their own ('blockplane PROGRAM --help'), also when blockplane is called by their name:
  daemon           a storage daemon that QMP drives, with the options of qemu-storage-daemon; that name works, too
  qemu-img         stands in for qemu-img
  qemu-io          stands in for qemu-io
  qemu-nbd         stands in for qemu-nbd
  vhost-user-blk   a back-end by the conventions of the vhost-user specification`;

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

/**
 * Runs one command line (without node and the script, whose name is `called`); answers its exit code: 0, 1 for a
 * failure, 2 for bad usage.
 */
export async function main(argv: readonly string[], called?: string): Promise<number> {
  const standIn = programOf(called, argv);
  const other = await standIn?.load();
  if (!other?.writesItself) {
    // Somebody who has read enough, as `| head -1` has, or a terminal that is gone.
    for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
  }
  if (standIn && other) return other.run(standIn.argv);
  const early = await startEarly(argv);
  const [{ Command, CommanderError }, { addServe, addImageVerbs }] = await Promise.all([
    import('commander'),
    import('./verbs.ts'),
  ]);
  let exitCode = 0;
  const program = new Command(PROGRAM)
    .description(
      'Block storage for Node.js: disk images, made, mended and served over NBD, each in an I/O thread of its own',
    )
    .version(packageVersion())
    .addHelpText('after', PROGRAMS_HELP)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, `${PROGRAM}: `)) });
  const ended = (code: number): void => {
    exitCode = code;
  };
  addServe(program, early, ended);
  addImageVerbs(program, ended);
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
