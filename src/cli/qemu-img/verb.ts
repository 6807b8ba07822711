/** What the verbs of the qemu-img form are made of. */
import type { ObjectStore } from '../../lib/objects/store.ts';
import type { CommandLine, OptionDef } from '../getopt.ts';

/** Where a program prints, and what it goes by. */
export interface Terminal {
  out(text: string): void;
  err(text: string): void;
  /** Of a file that is made, where nobody said it; default raw. May throw BlockError. */
  formatOfNew?(name: string): string;
}

/** One verb: a module of this folder, loaded when it is called. */
export interface Verb {
  readonly options: readonly OptionDef[];
  /** Exit code where an object is wrong; default 1. */
  readonly objectExit?: number;
  /** The last word is no option, whatever it looks like; the message where there are not two words. */
  readonly lastWord?: string;
  /** Answers the exit code. Throws {@link Misuse} and {@link Failure}, and BlockError for what went wrong. */
  run(line: VerbLine, terminal: Terminal): Promise<number>;
}

/** Bad usage that the program's help would cure: the message is followed by where that is. Exit code 1. */
export class Misuse extends Error {
  override readonly name = 'Misuse';
}

/** A message of the program's own. Its lines are printed as they are, behind the program's name. */
export class Failure extends Error {
  override readonly name = 'Failure';
  readonly exitCode: number;
  /** What stands behind the message. */
  readonly end: string;

  constructor(message: string, exitCode = 1, end = '\n') {
    super(message);
    this.exitCode = exitCode;
    this.end = end;
  }
}

/** Options that several verbs take. */
export const Option = {
  object: { long: 'object', argument: 'required' },
  imageOpts: { long: 'image-opts' },
  format: { short: 'f', long: 'format', argument: 'required' },
  /** Without a long form. */
  plainFormat: { short: 'f', argument: 'required' },
  output: { long: 'output', argument: 'required' },
  forceShare: { short: 'U', long: 'force-share' },
  quiet: { short: 'q' },
  progress: { short: 'p' },
  progressForm: { long: 'progress', argument: 'required' },
  cache: { short: 't', argument: 'required' },
  sourceCache: { short: 'T', argument: 'required' },
  settings: { short: 'o', argument: 'required' },
  preallocation: { long: 'preallocation', argument: 'required' },
} as const satisfies Readonly<Record<string, OptionDef>>;

/** A verb's command line. */
export class VerbLine {
  readonly operands: readonly string[];
  /** As they came, for verbs whose options have an order. */
  readonly options: CommandLine<OptionDef>['options'];
  /** Of a verb that takes it out. */
  readonly lastWord: string | undefined;
  /** Of --object; undefined where there are none. */
  readonly objects: ObjectStore | undefined;

  constructor(line: CommandLine<OptionDef>, objects?: ObjectStore, lastWord?: string) {
    this.operands = line.operands;
    this.options = line.options;
    this.objects = objects;
    this.lastWord = lastWord;
  }

  has(def: OptionDef): boolean {
    return this.options.some((given) => given.def === def);
  }

  /** The last one counts. */
  value(def: OptionDef): string | undefined {
    return this.options.findLast((given) => given.def === def)?.value;
  }

  values(def: OptionDef): readonly string[] {
    return this.options.flatMap((given) => (given.def === def && given.value !== undefined ? [given.value] : []));
  }

  /** Whether JSON is wanted. */
  get json(): boolean {
    const wanted = this.value(Option.output) ?? 'human';
    if (wanted !== 'json' && wanted !== 'human') {
      throw new Failure('--output must be used with human or json as argument.');
    }
    return wanted === 'json';
  }

  /** The one image file that the verb is about. */
  get image(): string {
    if (this.operands.length !== 1) throw new Misuse('Expecting one image file name');
    return this.operands[0]!;
  }
}
