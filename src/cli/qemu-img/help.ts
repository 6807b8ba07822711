/** What `--help` and `-o help` print. */
import { creationOptionsOf } from '../../img/creation-options.ts';
import { Failure } from './verb.ts';

const SUMMARY: Readonly<Record<string, string>> = {
  amend: 'change options of an image that is there',
  bench: 'measure I/O on an image',
  bitmap: 'add, remove, clear, enable, disable and merge dirty bitmaps',
  check: 'look for damage in an image, and repair it',
  commit: 'write what an overlay holds into its backing file',
  compare: 'compare what two images hold',
  convert: 'copy images into a new one of any format',
  create: 'make an image',
  dd: 'copy a part of an image into a new one',
  info: 'say what an image says of itself',
  map: 'list the extents of an image and where they are',
  measure: 'say how large an image would be',
  rebase: 'change the backing file of an image',
  resize: 'change the size of the disk in an image',
  snapshot: 'list, make, apply and delete snapshots inside an image',
};

export function helpText(verbs: readonly string[]): string {
  const width = Math.max(...verbs.map((verb) => verb.length));
  const lines = [...verbs].sort().map((verb) => `  ${verb.padEnd(width)}  ${SUMMARY[verb] ?? ''}`);
  return `usage: qemu-img [standard options] command [command options]
The image tool of QEMU, by blockplane: its commands, options and output.

  -h, --help     show this and exit
  -V, --version  show the version and exit
  -T, --trace    accepted, and of no effect

Commands, with the options that qemu-img(1) describes:
${lines.join('\n')}

Supported formats: http https ftp ftps file host_device nbd null-aio null-co qcow2 raw
`;
}

const WIDTH = 24;

/** What `-o help` prints; `here`: the file that is to be made is known. `only`: of these options, without a title. */
export function creationHelp(format: string, here: boolean, only?: ReadonlySet<string>): string {
  const options = creationOptionsOf(format);
  if (options === undefined) throw new Failure(`Unknown file format '${format}'`);
  const types = { string: 'str', size: 'size', number: 'num', boolean: 'bool (on/off)' } as const;
  const lines = options
    .filter(({ name, driver }) => (only === undefined ? here || driver !== null : only.has(name)))
    .map(({ name, type, help }) => `  ${`${name}=<${types[type]}>`.padEnd(WIDTH - 2)} - ${help}\n`);
  const title = only === undefined ? `Supported ${here ? '' : `${format} `}options:\n` : '';
  return title + lines.sort().join('');
}
