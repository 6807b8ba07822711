/**
 * NBD by TLS: our server beside qemu-nbd and nbdkit, with the same certificates and the same client (fio with libnbd,
 * which has GnuTLS), each on a warm image of its own, and without TLS as well, to see what TLS costs. Figures are
 * medians over alternating rounds.
 */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { authority, certificate } from '../test/pki.ts';
import { fillImage, hasProgram, MAIN, machineLine, options, SKIPPED, workFolder } from './common.ts';
import type { Load } from './fio.ts';
import { CACHE, type Contestant, daemonCommand, type Server, serve } from './peers.ts';
import { type Bar, report, rounds, verdicts } from './rounds.ts';

const KIB = 1024;
const MIB = 2 ** 20;
const NAMES = 'ours,qemu-nbd,ours-pool,nbdkit,ours-plain,qemu-nbd-plain';

function loads(): Load[] {
  const load = (rw: Load['rw'], kib: number, depth: number): Load => ({
    name: `${rw}-${kib}k-qd${depth}`,
    ...{ rw, blockBytes: kib * KIB, depth, jobs: 1 },
  });
  return [
    load('read', 64, 16),
    load('write', 64, 16),
    load('randread', 4, 1),
    load('randread', 4, 32),
    load('randwrite', 4, 32),
    load('write', 1024, 4),
  ];
}

const BARS: readonly Bar[] = ['read', 'write'].map((rw) => ({
  load: `${rw}-64k-qd16`,
  against: 'qemu-nbd',
  ratio: 0.8,
}));

/** Servers with the certificate in `pki`. fio allows its libnbd no file of credentials, so nobody is asked for one. */
function contestants(pki: string): Contestant[] {
  const uriOf = (name: string) => (socket: string) => `nbds+unix:///${name}?socket=${socket}&tls-verify-peer=false`;
  const uri = uriOf('');
  const ours = (aio: readonly string[], tls: readonly string[]) => (image: string, socket: string) => [
    ...[process.execPath, MAIN, 'serve', image, '--format', 'raw', '--cache', CACHE, '--socket', socket],
    ...[...aio, ...tls],
  ];
  const qemu = (tls: readonly string[]) => (image: string, socket: string) => [
    ...['qemu-nbd', '-f', 'raw', `--cache=${CACHE}`, '-e', '16', '-t', '-k', socket, ...tls, image],
  ];
  const nbdkit = (image: string, socket: string) => [
    ...['nbdkit', '-f', '-U', socket, '--tls=require', `--tls-certificates=${pki}/server`],
    ...['file', image],
  ];
  const folder = ['--tls-certificates', `${pki}/server`, '--no-tls-verify-peer'];
  const object = [
    '--object',
    `tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir=${pki}/server`,
    '--tls-creds',
    'tls0',
  ];
  const daemon = (name: string, iothread: boolean): Contestant => ({
    ...{ name, program: 'node', exportName: 'n', uri: uriOf('n') },
    command: (image, socket) => daemonCommand(image, socket, { iothread, tls: object.slice(0, 2) }),
  });
  return [
    daemon('ours-daemon', true),
    daemon('ours-daemon-main', false),
    { name: 'ours', program: 'node', exportName: '', command: ours([], folder), uri },
    { name: 'ours-pool', program: 'node', exportName: '', command: ours(['--aio', 'pool'], folder), uri },
    { name: 'ours-plain', program: 'node', exportName: '', command: ours([], []) },
    { name: 'qemu-nbd', program: 'qemu-nbd', exportName: '', command: qemu(object), uri },
    { name: 'qemu-nbd-plain', program: 'qemu-nbd', exportName: '', command: qemu([]) },
    { name: 'nbdkit', program: 'nbdkit', exportName: '', command: nbdkit, uri },
  ];
}

async function main(): Promise<number> {
  const given = options('NBD by TLS, servers side by side', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    seconds: { type: 'string', default: '2', help: 'seconds for each load, server and round' },
    only: { type: 'string', default: '', help: 'loads whose name matches this regular expression' },
    with: {
      type: 'string',
      default: NAMES,
      help: 'servers; also ours-daemon (its node in an IOThread), ours-daemon-main',
    },
    size: { type: 'string', default: '256', help: 'size of each image in MiB' },
    dir: { type: 'string', default: tmpdir(), help: 'folder for the images' },
    smoke: { type: 'boolean', help: 'one short round on small images: does it still work' },
  });
  const missing = ['fio', 'qemu-nbd', 'certtool'].filter((program) => !hasProgram(program));
  if (missing.length > 0) {
    console.log(`skipped: ${missing.join(', ')} not installed`);
    return SKIPPED;
  }
  const small = given.get('smoke') === true;
  const number = (name: string, smoke: number) => (small ? smoke : Number(given.get(name)));
  const only = new RegExp(String(given.get('only')));
  const names = String(given.get('with')).split(',');
  console.log(machineLine(['fio', 'qemu-nbd', 'nbdkit']));
  const folder = workFolder(String(given.get('dir')));
  await authority(join(folder, 'ca'), 'Bench CA');
  await certificate(join(folder, 'ca'), join(folder, 'server'), { endpoint: 'server' });
  const bytes = number('size', 16) * MIB;
  const servers: Server[] = [];
  try {
    for (const one of contestants(folder)) {
      if (!names.includes(one.name) || !(one.program === 'node' || hasProgram(one.program))) continue;
      const image = join(folder, `${one.name}.raw`);
      fillImage(image, bytes);
      servers.push(await serve(one, folder, image, bytes));
    }
    const chosen = loads().filter(({ name }) => only.test(name));
    const samples = await rounds(servers, chosen, number('rounds', 1), number('seconds', 0.3));
    console.log(`\n${report(samples, 'ours')}\n\n${verdicts(samples, BARS).join('\n')}`);
  } finally {
    for (const server of servers) await server.stop();
  }
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
