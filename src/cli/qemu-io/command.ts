/** What the commands of the qemu-io form are made of. */
import type { OptionDef } from '../getopt.ts';
import type { VerbLine } from '../qemu-img/verb.ts';
import type { Session } from './session.ts';

export interface Command {
  readonly name: string;
  readonly alias?: string;
  /** How its words are shown. */
  readonly form?: string;
  readonly about: string;
  /** Words behind the name, at least and at most. */
  readonly least: number;
  readonly most: number;
  /** Where there are none, words are taken as they come. */
  readonly options?: readonly OptionDef[];
  /** It works without an open image as well. */
  readonly withoutFile?: boolean;
  /** It is refused on an image that is read-only. */
  readonly writes?: boolean;
  /** Throws {@link Failed}, BlockError and {@link Misused}. */
  run(line: VerbLine, session: Session): Promise<void> | void;
}

/** A command that did not do what it was to do: `text` says so, in lines of its own. */
export class Failed extends Error {
  override readonly name = 'Failed';
  readonly stream: 'out' | 'err';

  constructor(text: string, stream: 'out' | 'err' = 'out') {
    super(text);
    this.stream = stream;
  }
}

/** No command comes any more, and the program ends with 1: what it is for has failed. */
export class Fatal extends Error {
  override readonly name = 'Fatal';
}

/** The words are not those of the command: its form is shown. */
export class Misused extends Error {
  override readonly name = 'Misused';
}

export function formOf({ name, form, about }: Command, as = name): string {
  return `${as} ${form === undefined ? '' : `${form} `}-- ${about}\n`;
}
