/** Names that an image could try to lead somewhere with, and images that bear them. */
import { readFileSync, writeFileSync } from 'node:fs';
import { Autoclear, ExtensionType, Incompatible } from '../src/proto/qcow2/constants.ts';
import { encodeHeader, parseHeader } from '../src/proto/qcow2/header.ts';
import { setExtension } from '../src/proto/qcow2/header-extensions.ts';
import { encodeName } from '../src/proto/qcow2/text.ts';

/** `outside`: a directory beside the image's, with secret.img in it. */
export function hostileNames(outside: string): string[] {
  const secret = `${outside}/secret.img`;
  return [
    ...[`json:{"driver":"raw","file":{"driver":"file","filename":"${secret}"}}`, 'json:', 'json:{', 'JSON:{}'],
    ...['json:{"driver":"nbd","server":{"type":"inet","host":"127.0.0.1","port":"1"}}', `file:${secret}`],
    ...[`file://${secret}`, 'nbd://127.0.0.1:1/', `nbd+unix:///?socket=${outside}/socket`, 'nbd:127.0.0.1:1'],
    ...[`nbd:unix:${outside}/socket`, 'http://127.0.0.1:1/disk', 'https://127.0.0.1:1/disk', 'ftp://127.0.0.1:1/x'],
    ...['ssh://127.0.0.1:1/x', 'sftp://127.0.0.1/x', 'iscsi://127.0.0.1/x/0', 'nfs://127.0.0.1/x', 'rbd:pool/image'],
    ...['gluster://127.0.0.1/v/x', 'fat:rw:/etc', 'vvfat:/etc', 'fd:0', 'host_device:/dev/zero', 'null-co://'],
    ...[`blkdebug::${secret}`, `blkverify:${secret}:${secret}`, 'tcp:127.0.0.1:1', 'exec:id', 'C:\\secret.img'],
    ...[
      '/proc/self/mem',
      '/proc/self/environ',
      '/proc/self/fd/0',
      '/dev/null',
      '/dev/zero',
      '/dev/stdin',
      '/etc/passwd',
    ],
    ...['//etc/passwd', secret, '../outside/secret.img', './../outside/secret.img', '../../../../../../etc/passwd'],
    ...[
      'sub/../../outside/secret.img',
      'link.img',
      'links/secret.img',
      'links/../outside/secret.img',
      'fifo',
      'socket',
    ],
    ...['.', '..', './', 'sub', 'missing.img', 'x'.repeat(1023), 'a/'.repeat(511), ' ', '~/secret.img', '$(id)', '|id'],
    ...[
      '..\\outside\\secret.img',
      '%2e%2e/outside/secret.img',
      '../outside/secret.img\n',
      '-o',
      '\udcff\udcfe',
      '\u202egmi',
    ],
  ];
}

export interface Names {
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly data?: string;
}

/** Copies the image in `from`, with other names in it. */
export function withNames(from: string, to: string, names: Names): string {
  const bytes = readFileSync(from);
  const header = parseHeader(bytes.subarray(0, 65_536), bytes.length);
  header.backingFile = names.backing;
  const format = names.backingFormat === undefined ? undefined : encodeName(names.backingFormat);
  setExtension(header, ExtensionType.BACKING_FORMAT, format);
  // It takes room that long names need.
  setExtension(header, ExtensionType.FEATURE_NAMES, undefined);
  if (names.data !== undefined) {
    header.incompatible |= Incompatible.DATA_FILE;
    header.autoclear &= ~BigInt(Autoclear.BITMAPS);
    setExtension(header, ExtensionType.DATA_FILE, encodeName(names.data));
  }
  bytes.fill(0, 0, 2 ** header.clusterBits);
  bytes.set(encodeHeader(header));
  writeFileSync(to, bytes);
  return to;
}
