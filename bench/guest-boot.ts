/**
 * How long a Linux guest takes from the start of QEMU to a shell that has read the beginning of its disk, with the disk
 * on our vhost-user-blk export and on qemu-storage-daemon's. Rounds in turning order; medians.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { guest, whyNoGuest } from '../test/guest.ts';
import {
  fillImage,
  hasProgram,
  MAIN,
  machineLine,
  markdownTable,
  median,
  options,
  SKIPPED,
  track,
  until,
  workFolder,
} from './common.ts';

const MIB = 2 ** 20;
const SCRIPT = `#!/bin/sh
dd if=/dev/vda of=/dev/null bs=1M count=32 2>/dev/null || exit 1
cut -d' ' -f1 /proc/uptime
`;

type Command = (image: string, socket: string) => readonly string[];

const BACK_ENDS: ReadonlyMap<string, Command> = new Map<string, Command>([
  ['ours', (image, socket) => [process.execPath, MAIN, 'serve', '--format', 'raw', '--vhost-user', socket, image]],
  [
    'qsd',
    (image, socket) => [
      'qemu-storage-daemon',
      ...['--object', 'iothread,id=io0', '--blockdev', `driver=file,node-name=disk,filename=${image}`],
      ...[
        '--export',
        `type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=io0,addr.type=unix,addr.path=${socket}`,
      ],
    ],
  ],
]);

/** Seconds to the shell, and to the end of its script. */
interface Boot {
  readonly shell: number;
  readonly end: number;
}

async function boot(folder: string, socket: string): Promise<Boot> {
  const text = await guest(folder, ['--vhost-user-blk', socket], SCRIPT);
  const found = /script started after ([\d.]+) s .*run took ([\d.]+) s/.exec(text);
  if (!found) throw new Error(`Could not measure: the guest has not said how long it took: ${text}`);
  return { shell: Number(found[1]), end: Number(found[2]) };
}

async function main(): Promise<number> {
  const given = options('Boot time of a guest on vhost-user-blk exports', {
    rounds: { type: 'string', default: '5', help: 'rounds; the figures are medians over them' },
    smoke: { type: 'boolean', help: 'one round: does it still work' },
  });
  const lacking = ['qemu-storage-daemon', 'qemu-system-x86_64'].find((program) => !hasProgram(program));
  const why = lacking === undefined ? whyNoGuest : `${lacking} is not installed`;
  if (why !== undefined) {
    console.log(`skipped: ${why}`);
    return SKIPPED;
  }
  const rounds = given.get('smoke') === true ? 1 : Number(given.get('rounds'));
  console.log(machineLine(['qemu-system-x86_64', 'qemu-storage-daemon']));
  const folder = workFolder();
  const running: { readonly name: string; readonly socket: string; readonly boots: Boot[]; end(): void }[] = [];
  for (const [name, command] of BACK_ENDS) {
    const [image, socket] = [join(folder, `${name}.raw`), join(folder, `${name}.sock`)];
    fillImage(image, 64 * MIB);
    const [program, ...args] = command(image, socket);
    const child = track(spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] }));
    await until(`${name} to listen`, 20_000, () => existsSync(socket));
    running.push({ name, socket, boots: [], end: () => child.kill() });
  }
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < running.length; turn++) {
      const { socket, boots } = running[(turn + round) % running.length]!;
      boots.push(await boot(folder, socket));
    }
    process.stderr.write(`\rround ${round + 1} of ${rounds}`);
  }
  process.stderr.write('\n');
  for (const { end } of running) end();
  const rows = running.map(({ name, boots }) => [
    name,
    ...[boots.map(({ shell }) => shell), boots.map(({ end }) => end)].map((values) => median(values).toFixed(2)),
  ]);
  console.log(`\n${markdownTable(['back-end', 's to the shell', 's to the end of 32 MiB read'], rows)}\n`);
  const [own, rival] = rows.map(([, shell]) => Number(shell)) as [number, number];
  console.log(`bar: ours by qsd at most 1: ${(own / rival).toFixed(2)}: ${own <= rival ? 'held' : 'missed'}`);
  return 0;
}

process.exitCode = await main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  return 1;
});
