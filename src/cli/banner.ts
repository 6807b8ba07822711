/** What `serve` says once it accepts: one URI a line, then how to connect. */
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
    '',
    ...threads.map(
      ({ name, backend }) => `IOThread ${name}: ${backend.name}${backend.detail && ` (${backend.detail})`}`,
    ),
  ];
  if (temporary !== undefined) lines.push(`The image ${temporary} is temporary: it is removed at the end.`);
  lines.push('Stop with Ctrl-C.', '');
  return lines.join('\n');
}
