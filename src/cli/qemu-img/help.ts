/** What `--help` and `-o help` print. */
import { creationOptionsOf } from '../../img/creation-options.ts';
import { Failure } from './verb.ts';
import { VERB_WORDS } from './verb-help.ts';

export function helpText(verbs: readonly string[]): string {
  const width = Math.max(...verbs.map((verb) => verb.length));
  const lines = [...verbs].sort().map((verb) => `  ${verb.padEnd(width)}  ${VERB_WORDS[verb]?.summary}`);
  return `usage: qemu-img [standard options] command [command options]
The image tool of QEMU, by blockplane: its commands, options and output.

  -h, --help     show this and exit
  -V, --version  show the version and exit
  -T, --trace    accepted, and of no effect

Commands ('COMMAND --help' lists what one takes):
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
