/**
 * A virtual machine boots from our export. The guest is a boot sector of our own: it reads the next sector with the
 * firmware's help, prints it on the serial port, writes it to the sector after, and ends the machine.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { needs, run, scratch, serve } from './harness.ts';

const SECTOR = 512;
const GREETING = 'booted from blockplane';
/** What isa-debug-exit makes of the 0x10 that the guest writes. */
const EXIT_CODE = (0x10 << 1) | 1;

/** 16-bit x86, loaded at 0x7c00; the firmware leaves the drive in dl. */
const BOOT_CODE = [
  'fa 31c0 8ed8 8ec0 8ed0 bc007c fb', // cli; ds = es = ss = 0; sp = 0x7c00; sti
  'b80102 bb007e b90200 b600 cd13', // int 13h, read: sector 2 of the first track to 0x7e00
  'be007e', // si = 0x7e00
  'ac 84c0 7406 baf803 ee ebf5', // until a 0: lodsb, out to the serial port 0x3f8
  'b80103 bb007e b90300 ba8000 cd13', // int 13h, write: from 0x7e00 to sector 3; dl is the first disk again
  'b010 e6f4', // out 0xf4: the end
  'f4 ebfd', // hlt, for ever
];

function bootDisk(): Buffer {
  const disk = Buffer.alloc(1024 * 1024);
  Buffer.from(BOOT_CODE.join('').replaceAll(' ', ''), 'hex').copy(disk);
  disk.writeUInt16LE(0xaa55, SECTOR - 2);
  disk.write(`${GREETING}\r\n`, SECTOR);
  return disk;
}

for (const bus of ['ide', 'virtio']) {
  test(`a machine boots from the export through ${bus}, and writes to it`, needs('qemu-system-x86_64'), async (t) => {
    const image = `${scratch(t)}/boot.img`;
    writeFileSync(image, bootDisk());
    const served = await serve(t, ['--format', 'raw', image]);
    const machine = await run('qemu-system-x86_64', [
      ...['-accel', 'tcg', '-m', '32', '-nodefaults', '-no-reboot', '-display', 'none', '-serial', 'stdio'],
      ...['-device', 'isa-debug-exit,iobase=0xf4,iosize=0x04'],
      ...['-drive', `file=${served.uri()},format=raw,if=${bus}`],
    ]);
    assert.equal(machine.code, EXIT_CODE, machine.stderr);
    assert.match(machine.stdout, new RegExp(GREETING));
    assert.equal((await served.stop()).code, 0);
    const written = readFileSync(image).subarray(2 * SECTOR, 3 * SECTOR);
    assert.equal(written.toString('latin1', 0, GREETING.length), GREETING);
  });
}
