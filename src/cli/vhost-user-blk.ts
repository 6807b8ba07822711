/**
 * `vhost-user-blk`: one disk to one virtual machine, with the options that management layers give to every back-end of
 * that name. [Vhost-user Protocol: Backend program conventions]
 */
import { once } from 'node:events';
import { Gate } from '../aio/op.ts';
import { type OptionDef, OptionError, readCommandLine } from './getopt.ts';
import { parseCount, UsageError } from './report.ts';

const NAME = 'vhost-user-blk';
const EXIT_USAGE = 2;
const FD_MAX = 2 ** 31 - 1;

const OPTIONS = [
  { short: 's', long: 'socket-path', argument: 'required' },
  { short: 'f', long: 'fd', argument: 'required' },
  { short: 'b', long: 'blk-file', argument: 'required' },
  { short: 'r', long: 'read-only' },
  { long: 'format', argument: 'required' },
  { long: 'num-queues', argument: 'required' },
  { short: 'c', long: 'print-capabilities' },
  { short: 'h', long: 'help' },
] as const satisfies readonly OptionDef[];

const HELP = `Usage: ${NAME} (--socket-path=PATH | --fd=FDNUM) --blk-file=FILE [OPTIONS]
Serves a disk image to a virtual machine, in the foreground, until SIGTERM

  -s, --socket-path=PATH    listen on this unix socket
  -f, --fd=FDNUM            a socket that was handed over: one that listens, or that the machine is connected to;
                            then it ends when the machine leaves
  -b, --blk-file=FILE       the image, a block device, or a URI
  -r, --read-only           refuse writes
      --format=FORMAT       raw or qcow2 (default: qcow2 for *.qcow2; else raw, unless it looks like something else)
      --num-queues=COUNT    the most queues of the machine (default: 64)
  -c, --print-capabilities  print what it can do as JSON, and exit
  -h, --help                print this, and exit
`;

const CAPABILITIES = { type: 'block', features: ['read-only', 'blk-file'] };

interface Settings {
  readonly where: { readonly socket: string } | { readonly fd: number };
  readonly file: string;
  readonly readOnly: boolean;
  readonly format: 'raw' | 'qcow2' | undefined;
  readonly queues: number | undefined;
}

type Given = ReadonlyMap<string, string | undefined>;

function settingsOf(given: Given, operands: readonly string[]): Settings {
  if (operands.length > 0) throw new UsageError(`unexpected argument '${operands[0]}'`);
  const [socket, fd, file] = [given.get('socket-path'), given.get('fd'), given.get('blk-file')];
  if ((socket === undefined) === (fd === undefined)) throw new UsageError('give one of --socket-path and --fd');
  if (file === undefined) throw new UsageError('--blk-file is missing');
  const format = given.get('format');
  if (format !== undefined && format !== 'raw' && format !== 'qcow2') {
    throw new UsageError(`--format: '${format}' is not raw or qcow2`);
  }
  return {
    ...{ file, format, readOnly: given.has('read-only') },
    where: socket === undefined ? { fd: parseCount(fd!, '--fd', 0, FD_MAX) } : { socket },
    queues: given.has('num-queues') ? parseCount(given.get('num-queues')!, '--num-queues', 1, 256) : undefined,
  };
}

async function serve({ where, file, readOnly, format, queues }: Settings): Promise<void> {
  const ended = new Gate();
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => ended.open());
  const [{ open }, { serveVhostUser }] = await Promise.all([import('../lib/open.ts'), import('../lib/vhost-user.ts')]);
  await using disk = await open(file, { readOnly, format });
  const service = await serveVhostUser(disk, { ...where, queues });
  service.on('disconnect', (why) => {
    if (why !== undefined) process.stderr.write(`${NAME}: ${why}\n`);
  });
  const failed = once(service, 'crash').then(([error]) => Promise.reject(error));
  // Nobody else comes on a socket that somebody was connected to.
  const left = service.socket === '' ? once(service, 'disconnect') : undefined;
  await Promise.race([ended.promise, failed, ...(left ? [left] : [])]);
  await service.stop();
}

/** Runs the program's command line, without its name; answers its exit code. */
export async function run(argv: readonly string[]): Promise<number> {
  try {
    const { options, operands } = readCommandLine(argv, OPTIONS);
    const given: Given = new Map(options.map(({ def, value }) => [def.long, value]));
    if (given.has('help')) process.stdout.write(HELP);
    else if (given.has('print-capabilities')) process.stdout.write(`${JSON.stringify(CAPABILITIES, undefined, 2)}\n`);
    else await serve(settingsOf(given, operands));
    return 0;
  } catch (error) {
    const usage = error instanceof UsageError || error instanceof OptionError;
    process.stderr.write(`${NAME}: ${error instanceof Error ? error.message : String(error)}\n`);
    if (usage) process.stderr.write(`Try '${NAME} --help'\n`);
    return usage ? EXIT_USAGE : 1;
  }
}
