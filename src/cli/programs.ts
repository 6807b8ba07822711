/**
 * Programs that blockplane stands in for: `blockplane qemu-img ...`, or blockplane called under such a name. They read
 * their command lines themselves, as the originals do.
 */
import { basename } from 'node:path';

export interface Program {
  /** It uses neither process.stdout nor process.stderr: to make these takes as long as many a command. */
  readonly writesItself?: boolean;
  /** Runs the program's command line, without its name; answers its exit code. */
  run(argv: readonly string[]): Promise<number>;
}

const storageDaemon = async (name: string): Promise<Program> =>
  (await import('./storage-daemon/program.ts')).storageDaemon(name);

const PROGRAMS: Readonly<Record<string, () => Promise<Program>>> = {
  daemon: () => storageDaemon('blockplane daemon'),
  'qemu-storage-daemon': () => storageDaemon('qemu-storage-daemon'),
  'qemu-img': () => import('./qemu-img/program.ts'),
  'qemu-io': () => import('./qemu-io/program.ts'),
  'qemu-nbd': () => import('./qemu-nbd/program.ts'),
  'vhost-user-blk': () => import('./vhost-user-blk.ts'),
};

/**
 * The program that a command line asks for by the name it was called under (`called`, a path) or by its first word, and
 * the words that are left for it.
 */
export function programOf(
  called: string | undefined,
  argv: readonly string[],
): { readonly load: () => Promise<Program>; readonly argv: readonly string[] } | undefined {
  const own = called === undefined ? undefined : named(basename(called));
  if (own) return { load: own, argv };
  const load = named(argv[0]);
  return load && { load, argv: argv.slice(1) };
}

function named(name: string | undefined): (() => Promise<Program>) | undefined {
  return name !== undefined && Object.hasOwn(PROGRAMS, name) ? PROGRAMS[name] : undefined;
}
