/** What `serve` says once it accepts, after one URI or socket a line: how to connect. */
import type { IOThread } from '../lib/iothread.ts';
import { shellWord } from './report.ts';

/** `temporary`: where the image is that will be removed at the end. */
export function howTo(uris: readonly string[], threads: readonly IOThread[], temporary: string | undefined): string {
  const uri = shellWord(uris[0]!);
  const lines = [
    '',
    'Connect to it, for example:',
    `  nbdinfo ${uri}`,
    `  nbdcopy ${uri} copy.img`,
    `  qemu-img convert -O qcow2 ${uri} copy.qcow2`,
    `  qemu-system-x86_64 -drive file=${uri},format=raw,if=virtio`,
  ];
  return text(lines, threads, temporary);
}

/** The same for virtual machines, which come to `socket`. */
export function howToBoot(socket: string, threads: readonly IOThread[], temporary: string | undefined): string {
  const lines = [
    '',
    'Connect a virtual machine to it, for example:',
    '  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\',
    `    -chardev ${shellWord(`socket,id=disk,path=${socket.replaceAll(',', ',,')},reconnect=1`)} \\`,
    '    -device vhost-user-blk-pci,chardev=disk',
  ];
  return text(lines, threads, temporary);
}

function text(how: readonly string[], threads: readonly IOThread[], temporary: string | undefined): string {
  const lines = [
    ...how,
    '',
    ...threads.map(
      ({ name, backend }) => `IOThread ${name}: ${backend.name}${backend.detail && ` (${backend.detail})`}`,
    ),
  ];
  if (temporary !== undefined) lines.push(`The image ${temporary} is temporary: it is removed at the end.`);
  lines.push('Stop with Ctrl-C.', '');
  return lines.join('\n');
}
