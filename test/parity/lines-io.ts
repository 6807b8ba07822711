/** `qemu-io`. */
import type { Line } from './harness.ts';

const RAW = '-f raw base.raw';
const QCOW2 = '-f qcow2 data.qcow2';
const FORMS = { differs: 'Help of qemu-io', except: ['stdout'] } as const;
/** The original shows the path that it was called by. */
const MISUSE = { differs: 'Help of qemu-io', except: ['stdout', 'stderr'] } as const;

/** A line of several commands. */
function io(image: string, ...commands: string[]): string {
  return `${commands.map((command) => `-c '${command}'`).join(' ')} ${image}`;
}

/** Each by itself: its exit code is its own. */
function each(image: string, ...commands: string[]): string[] {
  return commands.map((command) => io(image, command));
}

const PROGRAM_LINES: readonly Line[] = [
  '-f raw base.raw',
  '',
  '-c length nofile',
  '-f raw -c length nofile',
  '-f foo -c length base.raw',
  '-f raw -t foo base.raw',
  '-f raw -d foo base.raw',
  '-f raw -i foo base.raw',
  '-f raw -i native -c length base.raw',
  '-f raw -k -c length base.raw',
  '-f raw -n -k -c length base.raw',
  "-f raw -n -c 'read 1 1' -c 'write 1 1' -c 'readv 3 5' base.raw",
  '-f raw -m -c length base.raw',
  '-f raw -C -c length base.raw',
  "-f qcow2 -C -c 'read 0 1M' -c map -c info top.qcow2",
  '-f raw -C -r -c length base.raw',
  "-f raw -s -c 'write -P 3 0 64k' -c 'read -P 3 0 64k' -c length -c info -c map base.raw",
  "-f qcow2 -s -c 'write -P 3 0 64k' -c 'read -P 3 0 64k' -c 'read -P 4 1M 64k' data.qcow2",
  { line: '-f raw -z base.raw', ...MISUSE },
  { line: '-f', ...MISUSE },
  { line: '-f raw a b', ...FORMS },
  { line: '--help', ...FORMS },
  { line: '-V', differs: 'The version', except: ['stdout'] },
  '--image-opts -f raw driver=raw',
  '--image-opts -c length -c info driver=raw,file.filename=base.raw',
  '--image-opts -c length driver=foo,file.filename=base.raw',
  '--object foo -c length base.raw',
  "--object secret,id=s,data=abc -c 'read 0 64k' " +
    '--image-opts driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s',
  '-f raw -U -c length base.raw',
  '-f raw -r -U -c length base.raw',
  '-T foo -f raw -c length base.raw',
  '--cmd length --format raw base.raw',
  '--form raw --cm=length base.raw',
  '--cache none -c length -f raw base.raw',
  '-d unmap -c length -f raw base.raw',
  '-d off -c length -f raw base.raw',
  "-f raw -c length ''",
  "-c 'read 0 64k' base.raw",
  "-c 'write 0 64k' base.raw",
  "-c 'write -s data.qcow2 0 512' base.raw",
  "-c 'write -s data.qcow2 0 64k' base.raw",
  "-c 'write -s data.qcow2 0 64k' -c 'write -s data.qcow2 0 8' -c 'write -z 0 4k' -c 'map' base.raw",
  "-c 'read 0 64k' data.qcow2",
  '-f qcow2 -c length base.raw',
  ...[io(RAW, 'foo', '', '  ', 'help foo'), io(RAW, 'quit', 'length'), io(RAW, 'foo', 'q', 'length')],
  ...each('', 'info', 'length', 'read 0 1', 'write 0', 'sleep', 'sleep 10', 'aio_flush', 'reopen', 'foo', 'quit'),
];

const READ_LINES: readonly Line[] = [
  io(RAW, 'read 0 64k', 'read -C 0 64k', 'read -q 0 1', 'read -v 0 20', 'read 1 1', 'r 0 512'),
  io(RAW, 'read -P 1 0 64k', 'read -P 0x1 0 64k', 'read -P 0 64k 64k', 'read -P 2 512k 4k'),
  ...each(RAW, 'read -P 2 0 64k', 'read -P 1 -s 1k -l 2k 63k 8k', 'read -P 0 -s 1k -l 2k 63k 8k'),
  ...each(RAW, 'read -v 10 40', 'read -v 0 0', 'read -qv 0 16', 'read -P 9 -q 0 16', 'read -vC 0 16', 'read -p 0 512'),
  ...each(RAW, 'read -P x 0 64k', 'read -P 256 0 1', 'read -P -1 0 1', 'read -P 010 0 1', 'read a 1', 'read 0 b'),
  ...each(RAW, 'read 0', 'read', 'read -s', 'read -P 1 -s 3 0 2', 'read -P 1 -l 3 0 2', 'read -P 1 -l x 0 2'),
  ...each(
    RAW,
    'read -P 1 -s x 0 2',
    'read -- -1 1',
    'read 1M 1',
    'read 0 2M',
    'read 1023k 2k',
    'read 0 2G',
    'read 0 4G',
  ),
  ...each(
    RAW,
    'read 8E 1',
    'read 10E 1',
    'read 1E 1',
    'read 0 0',
    'read 1.5k 1',
    'read 1.5 1',
    'read 1b 1',
    'read 1s 1',
  ),
  ...each(
    RAW,
    'read +5 1',
    'read 1kk 1',
    'read 0 1500',
    'read 0 100000',
    'read 1e3 1',
    'read 0x10 0x20',
    'read -b 0 512',
  ),
  ...each(
    RAW,
    'read -b 1 512',
    'read -b 0 1',
    'readv 0 1k 2k',
    'readv -P 1 0 1k 2k',
    'readv -P 8 0 1k 2k',
    'readv 2M 1',
  ),
  ...each(
    RAW,
    'readv -v 0 8 8',
    'readv -q 0 1',
    'readv -C 0 1k',
    'readv x 1',
    'readv 0 x',
    'readv 0 1G 2G',
    'readv 0 1G 1G',
  ),
  ...each(RAW, 'readv 0 0', 'readv -P x 0 1', 'readv 0'),
  ...each(QCOW2, 'read -P 3 0 12k', 'read -P 0 12k 1000k', 'read -P 4 1M 64k', 'read -P 0 2M 64k', 'read -v 12280 16'),
  io('-f raw odd.raw', 'read 0 1000', 'read 990 10', 'length', 'map', 'alloc 0 1000'),
  ...['read 0 1 2', 'read -z 0 1', 'read -s 1 0 2', 'read 0 -1', 'read 0 1 -P', 'readv -z 0 1'].map((command) => ({
    line: io(RAW, command),
    ...FORMS,
  })),
  { line: io(RAW, 'read -r 0 512'), differs: 'Registered memory', except: ['stdout', 'stderr', 'exit'] },
  { line: io(RAW, 'read 0x1k 1'), differs: 'Hexadecimal sizes with a suffix', except: ['stdout', 'stderr', 'exit'] },
  { line: io(QCOW2, 'read -b 0 512'), differs: 'States of machines', except: ['stdout', 'exit'] },
];

const WRITE_LINES: readonly Line[] = [
  io(RAW, 'write -P 0x41 0 64k', 'read -P 0x41 0 64k', 'read -v 65530 16', 'w 4k 4k', 'read -P 0xcd 4k 4k'),
  io(QCOW2, 'write -P 0x41 100 100k', 'read -P 0x41 100 100k', 'read -v 92 16', 'map', 'alloc 0 1M'),
  io(RAW, 'write -s v2.img 0 1k', 'read -v 0 8', 'write -s odd.raw 4k 3k', 'write -s base.raw 512k 100k'),
  io(QCOW2, 'write -z 0 64k', 'write -zu 64k 64k', 'write -zn 128k 64k', 'write -z 100 100', 'read -P 0 0 256k'),
  io(QCOW2, 'discard 0 64k', 'discard -q 0 64k', 'discard -C 1M 64k', 'd 100 10', 'map', 'read -P 0 0 64k'),
  io('-f qcow2 top.qcow2', 'write 1M 64k', 'discard 256k 64k', 'map', 'read -P 0 512k 64k'),
  io('-f qcow2 empty.qcow2', 'write -c -P 7 0 64k', 'read -P 7 0 64k', 'map', 'write -c 960k 64k'),
  io(RAW, 'write -f 0 4k', 'write -C 0 4k', 'write -p 0 1', 'write -zf 0 4k', 'writev -f 0 512', 'writev -q 0 512'),
  io(RAW, 'writev -P 7 0 1k 2k', 'read -P 7 0 3k', 'writev -C 0 512'),
  ...each(RAW, 'write -n 0 4k', 'write -u 0 4k', 'write -z -P 1 0 4k', 'write -z -s f 0 4k', 'write -P 1 -s f 0 4k'),
  ...each(
    RAW,
    'write -c 0 64k',
    'write -b -z 0 4k',
    'write -b 0 512',
    'write -bf 0 4k',
    'write -cf 0 4k',
    'write -cz 0 4k',
  ),
  ...each(
    RAW,
    'write -P x 0 512',
    'write x 1',
    'write 0 x',
    'write 0 3G',
    'write 2M 1k',
    'write 0',
    'write -s nofile 0 1k',
  ),
  ...each(
    RAW,
    'write -z 0 3G',
    'write -zn 0 3G',
    'write 0 0',
    'discard 0 0',
    'discard x 1',
    'discard 0 x',
    'discard 0 3G',
  ),
  ...each(RAW, 'discard 2M 1', 'discard 0', 'writev 0 3G', 'writev x 1', 'writev 0 x', 'writev 0', 'writev 2M 512'),
  ...each(RAW, 'writev -P x 0 1', 'write -P -1 0 1', 'write -P 0xfff 0 1', 'write -c 100 10'),
  ...each('-f raw -r base.raw', 'write 0 1', 'discard 0 1', 'truncate 1', 'flush', 'write 0', 'aio_write 0 1'),
  ...each('-f qcow2 empty.qcow2', 'write -c 100 10', 'write -c 0 32k', 'write -c 0 128k', 'write 2M 1'),
  {
    line: io('-f qcow2 empty.qcow2', 'write -z 0 64k', 'map'),
    differs: 'Zeroes where there are none yet',
    except: ['stdout'],
  },
  ...['write 0 1 2', 'write -v 0 1', 'discard -z 0 1'].map((command) => ({ line: io(RAW, command), ...FORMS })),
];

const AIO_LINES: readonly Line[] = [
  io(RAW, 'aio_read 0 1k', 'aio_flush', 'aio_write -P 1 0 1k 2k', 'aio_flush', 'aio_read -P 2 0 1k', 'aio_flush'),
  io(
    RAW,
    'aio_read -i 0 1k',
    'aio_write -i 0 1k',
    'aio_write -z 0 1k',
    'aio_flush',
    'aio_write -zu 4k 1k',
    'aio_flush',
  ),
  ...each(RAW, 'aio_write -u 0 1k', 'aio_read 2M 1k', 'aio_write 2M 1k', 'aio_write -z 2M 1k', 'aio_read -v 0 16'),
  ...each(
    RAW,
    'aio_write -z 0 1k 1k',
    'aio_write -q 0 1k',
    'aio_read',
    'aio_read x 1',
    'aio_read 0 x',
    'aio_write 0 x',
  ),
  ...each(
    RAW,
    'aio_write x 1',
    'aio_flush 1',
    'aio_read -C 0 1k',
    'aio_read 0 3G',
    'aio_write -z 0 3G',
    'aio_write -f 0 4k',
  ),
  ...each(RAW, 'aio_read -P x 0 1', 'aio_write -P x 0 1', 'aio_write -P 1 -z 0 4k'),
];

const IMAGE_LINES: readonly Line[] = [
  io(RAW, 'info', 'map', 'alloc 0', 'alloc 100 1000', 'length', 'l', 'i', 'f'),
  io(QCOW2, 'info', 'map', 'alloc 0', 'alloc 0 1M', 'alloc 12k 4k', 'alloc 2M 64k', 'alloc 3M', 'alloc 0 4M'),
  ...each('-f qcow2 top.qcow2', 'info', 'map', 'alloc 0 1M', 'length'),
  ...['v2.img', 'sub.qcow2', 'ext.qcow2', '-r bits.qcow2', 'snap.qcow2'].map((name) =>
    io(`-f qcow2 ${name}`, 'info', 'map'),
  ),
  { line: io('-f qcow2 bits.qcow2', 'info'), differs: 'Bitmaps of an open image', except: ['stdout'] },
  {
    line: io(RAW, 'truncate 12345', 'length'),
    differs: 'Sizes that are no multiple of 512',
    except: ['stdout', 'files'],
  },
  ...each(QCOW2, 'alloc x', 'alloc 0 x', 'alloc -- -1', 'alloc', 'map x', 'length 3', 'info 3', 'flush 4', 'help a b'),
  io(
    RAW,
    'truncate 2M',
    'length',
    'truncate -m full 3M',
    'length',
    'truncate 12288',
    'length',
    'truncate 0',
    'map',
    'info',
  ),
  io(QCOW2, 'truncate 5M', 'length', 't 6M', 'read -P 0 3M 3M', 'map'),
  ...each(
    RAW,
    'truncate x',
    'truncate -m xx 3M',
    'truncate',
    'truncate 10E',
    'truncate -m metadata 2M',
    'truncate -m falloc 2M',
  ),
  ...['truncate -z 1', 'open -z', 'reopen -z', 'reopen x', 'open a b'].map((command) => ({
    line: io(RAW, command),
    ...FORMS,
  })),
  io(RAW, 'open base.raw', 'close', 'length', 'open base.raw', 'length', 'c', 'close'),
  io(RAW, 'close', 'open -r nofile', 'open', 'open -o driver=qcow2 data.qcow2', 'info', 'close'),
  io(
    '',
    'open -o driver=qcow2,file.filename=data.qcow2',
    'length',
    'close',
    'open -r data.qcow2',
    'length',
    'write 0 1',
  ),
  io('', 'o -o driver=qcow2,lazy-refcounts=on data.qcow2', 'info'),
  ...each('', 'open -k base.raw', 'open -t foo base.raw', 'open -d foo base.raw', 'open -C -r base.raw'),
  io(QCOW2, 'reopen -r', 'write 0 64k', 'reopen -w', 'write 0 64k', 'reopen', 'reopen -c none', 'read 0 1k'),
  io('-f raw -r base.raw', 'reopen -w', 'write 0 512', 'reopen', 'reopen -r', 'write 0 1'),
  ...each(QCOW2, 'reopen -rw', 'reopen -c foo', 'reopen -o foo=1', 'reopen -r -r'),
  { line: io(QCOW2, 'reopen -o lazy-refcounts=on'), differs: 'Options of reopen', except: ['stderr', 'exit'] },
  ...each(RAW, 'sleep x', 'sleep 1 2', 'sleep 10k', 'sleep -1', 'sleep 0x1', 'sleep 1.5', 'sleep'),
  ...each(RAW, 'sigraise', 'sigraise x', 'sigraise 99', 'sigraise 0', 'sigraise 15x', 'sigraise -1'),
  ...each(RAW, 'break a b', 'resume tag', 'remove_break tag', 'break', 'resume', 'wait_break', 'remove_break'),
  { line: io(RAW, 'help'), ...FORMS },
  { line: io(RAW, 'help read'), ...FORMS },
];

/** Requests that fail by rules; what they leave is compared too, and checked. */
const FAULT_LINES: readonly Line[] = [
  ...['l1_update', 'l2_update', 'write_aio', 'l2_alloc_write'].map((event) =>
    io(`-f qcow2 blkdebug:${event}.rules:empty.qcow2`, 'write -f 0 4k', 'write -f 0 4k', 'read -P 0xcd 0 4k'),
  ),
  ...['l2_load', 'read_aio'].map((event) =>
    io(`-f qcow2 blkdebug:${event}.rules:data.qcow2`, 'read 0 4k', 'read -P 3 0 4k'),
  ),
  {
    line: io('-f qcow2 blkdebug:states.rules:empty.qcow2', 'write 0 4k', 'write 64k 4k', 'read -P 0xcd 0 4k'),
    ...{ differs: 'Messages of blkdebug', except: ['stderr', 'files'] as const },
  },
  io('-f raw blkdebug:read_aio.rules:base.raw', 'read 0 64k', 'read -P 1 0 64k', 'write 0 4k'),
  io('blkdebug::data.qcow2', 'read -P 3 0 4k', 'info', 'map'),
  io('-f qcow2 blkdebug::top.qcow2', 'read -P 1 0 64k', 'read -P 6 256k 64k', 'write 0 4k'),
  ...['blkdebug::nofile', 'blkdebug:base.raw', 'blkdebug:'].map((name) => io(`-f raw ${name}`, 'length')),
  {
    line: io('-f raw blkdebug:nofile:base.raw', 'length'),
    ...{ differs: 'Messages of blkdebug', except: ['stderr'] as const },
  },
  {
    line: io('-f raw blkdebug:foo.rules:base.raw', 'length'),
    ...{ differs: 'Messages of blkdebug', except: ['stderr'] as const },
  },
  ...['opt-write-zero=4k,max-write-zero=8k', 'opt-discard=4k', 'align=3'].map((limits) =>
    io(
      `--image-opts driver=blkdebug,image.driver=file,image.filename=base.raw,${limits}`,
      ...['write -P 9 100 5000', 'read -P 9 100 5000', 'discard 64k 20000'],
    ),
  ),
  io(
    '--image-opts driver=blkdebug,image.driver=file,image.filename=base.raw,' +
      'inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=28,inject-error.0.sector=8',
    ...['write 0 4k', 'write 4k 1', 'read 4k 1', 'flush'],
  ),
  io('--image-opts driver=blkdebug', 'length'),
  io('--image-opts driver=blkdebug,image=foo', 'length'),
  io('--image-opts driver=blkdebug,image.driver=file,image.filename=base.raw,foo=1', 'length'),
  io('--image-opts driver=blkdebug,image.driver=file,image.filename=base.raw', 'info'),
];

const BREAKPOINT_LINES: readonly Line[] = [
  io(
    '-f qcow2 blkdebug::empty.qcow2',
    ...['break write_aio A', 'aio_write 0 64k', 'wait_break A', 'write 64k 4k', 'resume A', 'aio_flush', 'resume A'],
  ),
  io(
    '-f qcow2 blkdebug::empty.qcow2',
    ...['break write_aio A', 'aio_write 0 64k', 'wait_break A', 'remove_break A', 'aio_flush', 'break l2_load B'],
    ...['remove_break B', 'remove_break B', 'break foo C'],
  ),
];

const FILTER_LINES: readonly Line[] = [
  io('-f raw blkverify:base.raw:data.qcow2', 'write -P 5 0 64k', 'read -P 5 0 64k', 'info'),
  io('-f raw blkverify:base.raw:data.qcow2', 'read 0 64k', 'length'),
  io('-f raw blkverify:base.raw:data.qcow2', 'aio_read 0 64k', 'aio_flush', 'length'),
  ...['blkverify:base.raw', 'blkverify:nofile:data.qcow2', 'blkverify:base.raw:nofile'].map((name) =>
    io(name, 'length'),
  ),
  io('--image-opts driver=blkverify,raw.filename=base.raw', 'length'),
  io(
    '--image-opts driver=compress,file.driver=qcow2,file.file.filename=empty.qcow2',
    'write -P 3 0 4k',
    'map',
    'length',
  ),
  io('--image-opts driver=compress', 'length'),
  {
    line: io('--image-opts driver=compress,file.driver=file,file.filename=base.raw', 'length'),
    ...{ differs: 'Messages of blkdebug', except: ['stderr'] },
  },
  ...['', ',file.prealloc-size=64k', ',file.prealloc-size=0,file.prealloc-align=0'].map((sizes) =>
    io(
      `--image-opts driver=qcow2,file.driver=preallocate,file.file.filename=empty.qcow2${sizes}`,
      ...['write -P 3 0 4k', 'write -z 64k 64k', 'write -P 4 256k 100k', 'read -P 3 0 4k', 'length', 'info'],
    ),
  ),
  io(
    '--image-opts driver=raw,file.driver=preallocate,file.file.driver=file,file.file.filename=base.raw',
    ...['write 1M 4k', 'truncate 2M', 'write -P 5 1M 4k', 'length', 'truncate 1028k', 'length', 'read -P 5 1M 4k'],
  ),
  io('-r --image-opts driver=preallocate,file.driver=file,file.filename=base.raw', 'write 0 4k', 'read -P 1 0 64k'),
  io('--image-opts driver=preallocate', 'length'),
  io('--image-opts driver=preallocate,file=foo', 'length'),
  ...['prealloc-size=-1', 'prealloc-align=x', 'foo=1'].map((option) =>
    io(`--image-opts driver=preallocate,file.driver=file,file.filename=base.raw,${option}`, 'length'),
  ),
  {
    line: io('--image-opts driver=preallocate,file.driver=file,file.filename=base.raw,prealloc-align=1000', 'length'),
    ...{ differs: 'Messages of blkdebug', except: ['stderr'] },
  },
  io('--image-opts driver=null-co,size=3k,read-zeroes=on', 'read -P 0 0 1k', 'length', 'write 0 1k', 'flush'),
  io('--image-opts driver=null-aio,latency-ns=1000,read-zeroes=on', 'read -P 0 0 1k', 'length'),
  { line: io('--image-opts driver=null-co', 'info'), differs: 'Null devices', except: ['stdout', 'exit'] },
];

export const IO_LINES: Readonly<Record<string, readonly Line[]>> = {
  'the program': PROGRAM_LINES,
  reads: READ_LINES,
  'writes and discards': WRITE_LINES,
  'asynchronous requests': AIO_LINES,
  'images and others': IMAGE_LINES,
  'requests that fail': FAULT_LINES,
  'requests that stop': BREAKPOINT_LINES,
  filters: FILTER_LINES,
};
