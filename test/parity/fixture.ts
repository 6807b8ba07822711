/** The files that the lines of this suite are about. */
import type { Fixture } from './harness.ts';

const SECRET = ['--object', 'secret,id=s,data=abc'] as const;

/** Name -> a field of the header, as 'offset:bytes:value'. */
export const MUTANTS: Readonly<Record<string, string>> = {
  bits0: '20:4:0',
  bits8: '20:4:8',
  bits22: '20:4:22',
  crypt7: '32:4:7',
  l1size0: '36:4:0',
  l1sizehuge: '36:4:0x80000000',
  l1odd: '40:8:1',
  l1sector: '40:8:512',
  tableodd: '48:8:0x10001',
  table0: '56:4:0',
  tablehuge: '56:4:0xffffffff',
  snapshotshuge: '60:4:0x80000000',
  order7: '96:4:7',
  length8: '100:4:8',
  lengthhuge: '100:4:0x80000000',
  compressed1: '104:1:1',
  compressed9: '104:1:9',
  feature40: '72:8:0x10000000000',
  backingfar: '8:8:0x10001',
  sizehuge: '24:8:0x10000000000',
};

const MUTATE = `
import sys
image = open('empty.qcow2', 'rb').read()
for name, field in zip(sys.argv[1::2], sys.argv[2::2]):
    at, length, value = (int(part, 0) for part in field.split(':'))
    mutant = bytearray(image)
    mutant[at:at + length] = value.to_bytes(length, 'big')
    open(name + '.mutant', 'wb').write(mutant)
`;

/** In use: the flags of b0 are 12 bytes before its name, behind which the rest of its entry is. */
const BREAK_BITMAP = `
image = bytearray(open('broken-bits.qcow2', 'rb').read())
image[image.index(bytes([0, 2, 0, 0, 0, 0]) + b'b0') - 3] |= 1
open('broken-bits.qcow2', 'wb').write(image)
`;

/** Rules of blkdebug: one that fails a request once, with ENOSPC, at the event that its file is named for. */
const RULES = `
import sys
for event in sys.argv[1:]:
    with open(event + '.rules', 'w') as file:
        file.write('# fails once\\n[inject-error]\\nevent = "%s"\\nerrno = "28"\\nonce = "on"\\n' % event)
states = ['[inject-error]', 'event = "write_aio"', 'state = "2"', '[set-state]', 'event = "write_aio"']
with open('states.rules', 'w') as file:
    file.write('\\n'.join(states + ['new_state = "2"', '']))
`;

export const FIXTURE: Fixture = {
  commands: [
    ['python3', '-c', RULES, 'l1_update', 'l2_load', 'l2_update', 'write_aio', 'read_aio', 'l2_alloc_write', 'foo'],
    ['qemu-img', 'create', '-q', '-f', 'raw', 'base.raw', '1M'],
    ['qemu-io', '-f', 'raw', '-c', 'write -P 1 0 64k', '-c', 'write -P 2 512k 4k', 'base.raw'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'empty.qcow2', '1M'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'v2.img', '-o', 'compat=0.10', '1M'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', 'data.qcow2', '3M'],
    [
      'qemu-io',
      '-f',
      'qcow2',
      '-c',
      'write -P 3 0 12k',
      '-c',
      'write -P 4 1M 64k',
      '-c',
      'write -z 2M 64k',
      'data.qcow2',
    ],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', '-o', 'lazy_refcounts=on', 'ov.qcow2'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 5 64k 64k', 'ov.qcow2'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'ov.qcow2', '-F', 'qcow2', 'top.qcow2', '2M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 6 256k 64k', '-c', 'write -z 512k 64k', 'top.qcow2'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'snap.qcow2', '1M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 7 0 128k', 'snap.qcow2'],
    ['qemu-img', 'snapshot', '-c', 's1', 'snap.qcow2'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 8 0 64k', 'snap.qcow2'],
    ['qemu-img', 'snapshot', '-c', 'a second snapshot with a long name', 'snap.qcow2'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'bits.qcow2', '1M'],
    ['qemu-img', 'bitmap', '--add', 'bits.qcow2', 'b0'],
    ['qemu-img', 'bitmap', '--add', '--disable', '-g', '32k', 'bits.qcow2', 'b1'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 128k', 'bits.qcow2'],
    ['cp', 'bits.qcow2', 'broken-bits.qcow2'],
    ['python3', '-c', BREAK_BITMAP],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'data_file=ext.raw,data_file_raw=on', 'ext.qcow2', '1M'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on,compression_type=zstd', 'sub.qcow2', '4M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 10 2k 6k', '-c', 'write -c -P 11 64k 64k', 'sub.qcow2'],
    [
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      ...SECRET,
      '-o',
      'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
      'luks.qcow2',
      '1M',
    ],
    [
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      ...SECRET,
      '-o',
      'encrypt.format=aes,encrypt.key-secret=s',
      'aes.qcow2',
      '1M',
    ],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'partly.qcow2', '1M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write 4k 4k', '-c', 'write 320k 4k', 'partly.qcow2'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', 'places.qcow2', '8M'],
    ['qemu-img', 'create', '-q', '-f', 'raw', 'odd.raw', '1000'],
    ['qemu-img', 'create', '-q', '-f', 'vmdk', 'other.vmdk', '1M'],
    ['cp', 'data.qcow2', 'leak.qcow2'],
    ['python3', '-c', 'f=open("leak.qcow2","r+b"); f.seek(0,2); n=f.tell(); f.truncate((n+8191)//4096*4096)'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'corrupt.qcow2', '1M'],
    ['qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 192k', 'corrupt.qcow2'],
    // The refcount of the second data cluster is 0, that of one behind them 1.
    [
      'python3',
      '-c',
      'f=open("corrupt.qcow2","r+b"); f.seek(2*65536+12); f.write(bytes(2)); f.seek(2*65536+40); f.write(bytes([0,1]))',
    ],
    ['cp', 'empty.qcow2', 'leaky.qcow2'],
    ['python3', '-c', 'f=open("leaky.qcow2","r+b"); f.seek(2*65536+10); f.write(bytes([0,1])); f.truncate(6*65536)'],
    ['python3', '-c', MUTATE, ...Object.entries(MUTANTS).flat()],
    ['cp', 'empty.qcow2', 'version9.qcow2'],
    ['python3', '-c', 'f=open("version9.qcow2","r+b"); f.seek(7); f.write(bytes([9]))'],
    ['cp', 'empty.qcow2', 'feature.qcow2'],
    ['python3', '-c', 'f=open("feature.qcow2","r+b"); f.seek(72); f.write(bytes([128]))'],
    ['cp', 'empty.qcow2', 'short.qcow2'],
    ['truncate', '-s', '60', 'short.qcow2'],
    ['cp', 'empty.qcow2', 'l1far.qcow2'],
    ['python3', '-c', 'f=open("l1far.qcow2","r+b"); f.seek(40); f.write(bytes([127]+[255]*7))'],
    ['cp', 'empty.qcow2', 'bits25.qcow2'],
    ['python3', '-c', 'f=open("bits25.qcow2","r+b"); f.seek(23); f.write(bytes([25]))'],
  ],
  below: {
    'ov.qcow2': ['base.raw'],
    'top.qcow2': ['ov.qcow2', 'base.raw'],
    'ext.qcow2': ['ext.raw'],
  },
};
