/** Runs what is called often in one process of the published command, so that what V8 keeps of it holds that. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const folder = mkdtempSync(join(tmpdir(), 'blockplane-warm-'));
const [image, copy, overlay] = ['image', 'copy', 'overlay'].map((name) => join(folder, `${name}.qcow2`));
const LINES = [
  ['qemu-img', 'create', '-q', '-f', 'qcow2', image, '1M'],
  ['qemu-io', '-c', 'write 0 64k', image],
  ['qemu-img', 'info', image],
  ['qemu-img', 'map', image],
  ['qemu-img', 'check', '-q', image],
  ['qemu-img', 'convert', '-O', 'qcow2', image, copy],
  ['create', '-b', image, '-F', 'qcow2', overlay],
  ['info', overlay],
  ['check', overlay],
];
try {
  const { main } = await import(pathToFileURL(process.argv[2]).href);
  for (const line of LINES) {
    if ((await main(line)) !== 0) throw new Error(`'${line.join(' ')}' failed`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
