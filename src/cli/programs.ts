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

interface Entry {
  readonly load: () => Promise<Program>;
  /** For the help of blockplane. */
  readonly summary: string;
}

export const PROGRAMS: Readonly<Record<string, Entry>> = {
  daemon: {
    load: () => storageDaemon('blockplane daemon'),
    summary: 'a storage daemon that QMP drives, with the options of qemu-storage-daemon',
  },
  io: { load: () => import('./qemu-io/own.ts'), summary: 'do I/O on an image by hand or by script, as qemu-io does' },
  'qemu-img': { load: () => import('./qemu-img/program.ts'), summary: 'stands in for qemu-img' },
  'qemu-io': { load: () => import('./qemu-io/program.ts'), summary: 'stands in for qemu-io' },
  'qemu-nbd': { load: () => import('./qemu-nbd/program.ts'), summary: 'stands in for qemu-nbd' },
  'qemu-storage-daemon': {
    load: () => storageDaemon('qemu-storage-daemon'),
    summary: 'stands in for qemu-storage-daemon',
  },
  'vhost-user-blk': {
    load: () => import('./vhost-user-blk.ts'),
    summary: 'a back-end by the conventions of the vhost-user specification',
  },
};

/** Verbs of blockplane's own that have the options and the output of qemu-img's. */
export const IMAGE_VERBS = ['bench', 'bitmap', 'commit', 'compare', 'convert', 'dd', 'map', 'measure', 'rebase'];

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
  const [word] = argv;
  if (word !== undefined && IMAGE_VERBS.includes(word)) {
    return { load: async () => (await import('./qemu-img/program.ts')).ownVerbs, argv };
  }
  const load = named(word);
  return load && { load, argv: argv.slice(1) };
}

function named(name: string | undefined): (() => Promise<Program>) | undefined {
  return name !== undefined && Object.hasOwn(PROGRAMS, name) ? PROGRAMS[name]!.load : undefined;
}
