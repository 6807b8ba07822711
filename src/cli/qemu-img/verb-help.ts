/** What the verbs take, in words: for `VERB --help`, the manual and completions. */
import type { OptionDef } from '../getopt.ts';
import type { Verb } from './verb.ts';

export interface VerbWords {
  readonly summary: string;
  readonly operands: string;
  /** By the option's first name; what is the same everywhere is in {@link SHARED}. */
  readonly options?: Readonly<Record<string, OptionWords>>;
}

/** What it does; of one with an argument, what that is called, and what it does. */
type OptionWords = string | readonly [argument: string, does: string];

const IMAGE_OPTS = 'images are trees of options: driver=qcow2,file.filename=x';

const SHARED: Readonly<Record<string, OptionWords>> = {
  object: ['TYPE,id=ID,...', 'make an object, as a secret, that options name'],
  'image-opts': IMAGE_OPTS,
  f: ['FORMAT', 'what the image is; default: what its first bytes say'],
  output: ['FORM', 'human (default) or json'],
  U: 'open it whatever locks others hold',
  q: 'print errors only',
  p: 'show the progress',
  progress: ['FORM', 'line (as -p), json (a line for each step) or none'],
  t: ['CACHE', 'cache mode of what is written: writeback, writethrough, none, directsync, unsafe'],
  T: ['CACHE', 'cache mode of what is read'],
  o: ['OPTIONS', "options of the format: 'NAME=VALUE,...'; 'help' lists them"],
  preallocation: ['MODE', 'what is allocated of what is new: off, metadata, falloc, full'],
  O: ['FORMAT', 'format of the image that is made (raw; as blockplane convert or dd: what its name says)'],
};

const IMAGE = 'IMAGE';

export const VERB_WORDS: Readonly<Record<string, VerbWords>> = {
  amend: {
    summary: 'change options of an image that is there',
    operands: IMAGE,
    options: { force: 'also what cannot be undone' },
  },
  bench: {
    summary: 'measure I/O on an image',
    operands: IMAGE,
    options: {
      i: ['AIO', 'accepted: threads, native, io_uring'],
      n: 'accepted: native AIO',
      c: ['COUNT', 'requests in all (75000)'],
      d: ['DEPTH', 'requests at a time (64)'],
      s: ['BYTES', 'size of a request (4k)'],
      S: ['BYTES', 'from one request to the next (the size of one)'],
      o: ['OFFSET', 'where the first one is (0)'],
      w: 'write instead of read',
      pattern: ['BYTE', 'what is written (0)'],
      'flush-interval': ['COUNT', 'flush after so many writes'],
      'no-drain': 'go on writing during a flush',
    },
  },
  bitmap: {
    summary: 'add, remove, clear, enable, disable and merge dirty bitmaps',
    operands: `${IMAGE} BITMAP`,
    options: {
      add: 'make it',
      remove: 'remove it',
      clear: 'nothing is dirty in it any more',
      enable: 'record writes from now on',
      disable: 'record no more writes',
      merge: ['SOURCE', 'what is dirty in this one is dirty in it, too'],
      b: ['FILE', 'the image that SOURCE is in (the same)'],
      F: ['FORMAT', 'what that is'],
      g: ['BYTES', 'what a bit of a new one stands for'],
    },
  },
  check: {
    summary: 'look for damage in an image, and repair it',
    operands: IMAGE,
    options: { r: ['WHAT', 'repair leaks, or all'] },
  },
  commit: {
    summary: 'write what an overlay holds into its backing file',
    operands: IMAGE,
    options: {
      b: ['BASE', 'write it into this image of the chain, and do not empty the overlay'],
      d: 'do not empty the overlay',
      r: ['BYTES', 'bytes a second at most'],
    },
  },
  compare: {
    summary: 'compare what two images hold',
    operands: 'IMAGE1 IMAGE2',
    options: {
      f: ['FORMAT', 'what the first is'],
      F: ['FORMAT', 'what the second is'],
      s: 'sizes and what is allocated must be the same, too',
    },
  },
  convert: {
    summary: 'copy images into a new one of any format',
    operands: 'SOURCE... TARGET',
    options: {
      c: 'compress',
      C: 'have the system copy, without looking for zeroes',
      B: ['FILE', 'backing file of the target: only what differs from it is copied'],
      F: ['FORMAT', 'what that is'],
      l: ['SNAPSHOT', 'copy an internal snapshot: id, name or snapshot.id=..,snapshot.name=..'],
      S: ['BYTES', 'leave zeroes out in units of this (4k); 0 to copy them'],
      m: ['COUNT', 'requests at a time, 1 to 16 (8)'],
      W: 'write in any order',
      r: ['BYTES', 'bytes a second at most'],
      n: 'the target is there',
      'target-image-opts': 'the target is a tree of options',
      'target-is-zero': 'with -n: all of the target reads as zeroes',
      salvage: 'what cannot be read becomes zeroes',
      bitmaps: 'copy the persistent dirty bitmaps, too',
      'skip-broken-bitmaps': 'without those that are inconsistent',
    },
  },
  create: {
    summary: 'make an image',
    operands: 'FILE [SIZE]',
    options: {
      f: ['FORMAT', 'what it is to be (raw)'],
      b: ['FILE', 'the image below it'],
      F: ['FORMAT', 'what that is'],
      u: 'do not look at the image below',
    },
  },
  dd: {
    summary: 'copy a part of an image into a new one',
    operands: 'if=SOURCE of=TARGET [bs=BYTES] [count=BLOCKS] [skip=BLOCKS]',
  },
  info: {
    summary: 'say what an image says of itself',
    operands: IMAGE,
    options: { 'backing-chain': 'and what those below it say' },
  },
  map: {
    summary: 'list the extents of an image and where they are',
    operands: IMAGE,
    options: { s: ['OFFSET', 'where to begin'], l: ['BYTES', 'how far to go'] },
  },
  measure: {
    summary: 'say how large an image would be',
    operands: `[${IMAGE}]`,
    options: { l: ['SNAPSHOT', 'of an internal snapshot'], size: ['BYTES', 'of a new disk of this size'] },
  },
  rebase: {
    summary: 'change the backing file of an image',
    operands: IMAGE,
    options: {
      b: ['FILE', "the new backing file; '' for none"],
      F: ['FORMAT', 'what that is'],
      u: 'only write the name: what it reads does not matter',
    },
  },
  resize: {
    summary: 'change the size of the disk in an image',
    operands: `${IMAGE} [+|-]SIZE`,
    options: { shrink: 'it is meant that it becomes smaller' },
  },
  snapshot: {
    summary: 'list, make, apply and delete snapshots inside an image',
    operands: IMAGE,
    options: {
      l: 'list them (default)',
      a: ['NAME', 'go back to one'],
      c: ['NAME', 'make one'],
      d: ['NAME', 'delete one'],
    },
  },
};

/** An option with what it is for. */
export interface DescribedOption {
  /** `-f, --format FORMAT`. */
  readonly usage: string;
  readonly does: string;
  readonly def: OptionDef;
}

/** The options of a verb, in words. */
export function describedOptions(name: string, { options }: Pick<Verb, 'options'>): DescribedOption[] {
  return options.map((def) => {
    const words = wordsOf(name, def);
    const [argument, does] = typeof words === 'string' ? ['', words] : words;
    const names = [def.short && `-${def.short}`, def.long && `--${def.long}`].filter(Boolean).join(', ');
    return { usage: argument === '' ? names : `${names} ${argument}`, does, def };
  });
}

function wordsOf(name: string, { short, long }: OptionDef): OptionWords {
  const own = VERB_WORDS[name]?.options ?? {};
  for (const table of [own, SHARED]) {
    for (const key of [short, long]) if (key !== undefined && Object.hasOwn(table, key)) return table[key]!;
  }
  return '';
}

/** `VERB --help`, under the name of a program. */
export function verbHelp(program: string, name: string, verb: Pick<Verb, 'options'>): string {
  const { summary, operands } = VERB_WORDS[name]!;
  const described = describedOptions(name, verb);
  const width = Math.max(...described.map(({ usage }) => usage.length));
  const lines = described.map(({ usage, does }) => `  ${usage.padEnd(width)}  ${does}\n`).sort(byLetter);
  return `usage: ${program} ${name} [OPTIONS] ${operands}\n\nTo ${summary}.\n\n${lines.join('')}`;
}

function byLetter(a: string, b: string): number {
  const letters = (line: string): string => line.replace(/^[ -]+/, '');
  return letters(a).localeCompare(letters(b), 'en');
}
