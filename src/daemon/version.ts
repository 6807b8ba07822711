import type { Qapi } from '../qmp/schema/schema.ts';

/**
 * The release of QEMU whose monitor this one speaks as: clients look at the numbers to see what they may ask for. The
 * package says what it really is.
 */
const SPEAKS = { major: 10, minor: 2, micro: 0 } as const;

export function versionInfo(name = 'blockplane'): Qapi<'VersionInfo'> {
  return { qemu: SPEAKS, package: name };
}
