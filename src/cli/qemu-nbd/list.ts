/** `--list`: the exports of another server. */
import { BlockError } from '../../base/errors.ts';
import { type ListedExport, nbdExports } from '../../lib/nbd-exports.ts';
import type { ObjectStore } from '../../lib/objects/store.ts';
import { credentialsOf } from '../../lib/objects/tls.ts';
import { Failure, type NbdOptions } from './options.ts';
import type { Terminal } from './program.ts';

/** By bit. */
const FLAGS = [
  ...['', 'readonly', 'flush', 'fua', 'rotational', 'trim', 'zeroes', 'df', 'multi'],
  ...['resize', 'cache', 'fast-zero', 'block-status-payload'],
];

export async function list(options: NbdOptions, objects: ObjectStore | undefined, terminal: Terminal): Promise<number> {
  const { socket, bind = '0.0.0.0', port = '10809', tlsHostname } = options;
  const server =
    socket === undefined ? ({ type: 'inet', host: bind, port } as const) : ({ type: 'unix', path: socket } as const);
  const tls = clientTls(options, objects);
  let exports: readonly ListedExport[];
  try {
    exports = await nbdExports({
      server,
      ...tls,
      ...(tlsHostname === undefined ? {} : { 'tls-hostname': tlsHostname }),
    });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new Failure(`Failed to connect to '${socket ?? `${bind}:${port}`}': ${error.message}`);
  }
  terminal.out(`exports available: ${exports.length}\n${exports.map(exportText).join('')}`);
  return 0;
}

function clientTls({ tlsCreds: id }: NbdOptions, objects: ObjectStore | undefined) {
  if (id === undefined) return {};
  if (!objects) throw new Failure(`Failed to get TLS creds: No TLS credentials with id '${id}'`);
  try {
    return { 'tls-creds': credentialsOf(objects, id, 'client') };
  } catch (error) {
    throw new Failure(`Failed to get TLS creds: ${(error as Error).message}`);
  }
}

function exportText({ name, description, size, flags, blocks, contexts }: ListedExport): string {
  const lines = [` export: '${name}'`];
  if (description !== '') lines.push(`  description: ${description}`);
  if (size !== undefined) lines.push(`  size:  ${size}`);
  if (flags !== undefined) lines.push(`  flags: 0x${flags.toString(16)} ( ${flagNames(flags)})`);
  if (blocks) {
    lines.push(`  min block: ${blocks.minimum}`, `  opt block: ${blocks.preferred}`, `  max block: ${blocks.maximum}`);
  }
  lines.push(`  available meta contexts: ${contexts.length}`, ...contexts.map((context) => `   ${context}`));
  // What a server says goes onto a terminal.
  return lines.map((line) => `${line.replace(/\p{Cc}/gu, '?')}\n`).join('');
}

function flagNames(flags: number): string {
  return FLAGS.map((name, bit) => (name !== '' && (flags & (1 << bit)) !== 0 ? `${name} ` : '')).join('');
}
