/**
 * `blockplane qemu-nbd`, or blockplane called under that name: the options, defaults, messages and exit codes of
 * Debian's qemu-nbd 7.2. docs/COMPATIBILITY.md says where it is otherwise.
 */
import type { ObjectStore } from '../../lib/objects/store.ts';
import type { TlsServerOptions } from '../../lib/tls-options.ts';
import { OptionError, readCommandLine } from '../getopt.ts';
import { Failure, type NbdOptions, OPTIONS, Option, readOptions } from './options.ts';

const PROGRAM = 'qemu-nbd';
/** What scripts look for to know which options there are. */
const VERSION = `${PROGRAM} 7.2.22 (blockplane)\n`;
const TRY_HELP = `Try \`${PROGRAM} --help' for more information.\n`;

/** Where it speaks. */
export interface Terminal {
  out(text: string): void;
  err(text: string): void;
}

const PROCESS: Terminal = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
};

/** Runs a command line without the program's name; answers its exit code. */
export async function run(argv: readonly string[], terminal: Terminal = PROCESS): Promise<number> {
  const complain = (text: string): number => {
    terminal.err(`${PROGRAM}: ${text}`);
    return 1;
  };
  try {
    return await dispatch(argv, terminal);
  } catch (error) {
    if (error instanceof OptionError) return complain(`${error.message}\n${PROGRAM}: ${TRY_HELP}`);
    if (error instanceof Misuse) return complain(`Invalid number of arguments\n${TRY_HELP}`);
    return complain(`${error instanceof Error ? error.message : String(error)}\n`);
  }
}

class Misuse extends Error {}

async function dispatch(argv: readonly string[], terminal: Terminal): Promise<number> {
  const line = readCommandLine(argv, OPTIONS);
  for (const { def } of line.options) {
    if (def !== Option.help && def !== Option.version) continue;
    terminal.out(def === Option.version ? VERSION : (await import('./help.ts')).HELP);
    return 0;
  }
  const options = readOptions(line);
  const operand = line.operands[0];
  const { objectStore } = await import('../objects.ts');
  const objects = await objectStore(options.objects);
  if (typeof objects === 'string') {
    terminal.out(objects);
    return 0;
  }
  if (options.list) {
    checkList(options, operand);
    const { list } = await import('./list.ts');
    return await list(options, objects, terminal);
  }
  if (line.operands.length !== 1) throw new Misuse();
  checkKernel(options);
  const tls = await serverTls(options, objects);
  const { serve } = await import('./serve.ts');
  return await serve(operand!, options, { objects, tls, terminal });
}

function checkList(options: NbdOptions, operand: string | undefined): void {
  if (operand !== undefined) throw new Failure('List mode is incompatible with a file name');
  const { exportName, description, offset, connect, disconnect, format, snapshot, bitmaps } = options;
  const { allocationDepth, aio, discard, cache } = options;
  const own = [exportName, description, connect, format, snapshot, aio, discard, cache, bitmaps[0]];
  if (offset !== 0 || disconnect || allocationDepth || own.some((one) => one !== undefined)) {
    throw new Failure('List mode is incompatible with per-device settings');
  }
  if (options.fork) throw new Failure('List mode is incompatible with forking');
}

/** What the kernel's NBD client would be told through ioctl(2) on its device. */
function checkKernel({ connect, disconnect }: NbdOptions): void {
  const option = connect !== undefined ? '-c' : disconnect ? '-d' : undefined;
  if (option === undefined) return;
  const why = 'the kernel takes no device over from here; serve the image, and use nbd-client(8)';
  throw new Failure(`${option} is not supported: ${why}`);
}

/** Of the server; undefined for none. */
async function serverTls(
  { tlsCreds: id, tlsAuthz, tlsHostname }: NbdOptions,
  objects: ObjectStore | undefined,
): Promise<TlsServerOptions | undefined> {
  if (id === undefined) {
    if (tlsAuthz !== undefined) throw new Failure('--tls-authz is not permitted without --tls-creds');
    if (tlsHostname !== undefined) throw new Failure('--tls-hostname is not permitted without --tls-creds');
    return undefined;
  }
  if (tlsHostname !== undefined) throw new Failure('TLS hostname is only supported with export list');
  if (!objects) throw new Failure(`Failed to get TLS creds: No TLS credentials with id '${id}'`);
  const { serverTlsOf } = await import('../../lib/objects/tls.ts');
  try {
    return serverTlsOf(objects, id, tlsAuthz);
  } catch (error) {
    throw new Failure(`Failed to get TLS creds: ${(error as Error).message}`);
  }
}
