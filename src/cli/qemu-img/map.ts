/** `qemu-img map`. */
import { type MapExtent, mapImage } from '../../img/map.ts';
import { withImage } from '../../img/open.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { sizeOf } from './sizes.ts';
import { imageSpec } from './targets.ts';
import { Failure, Option, type Verb } from './verb.ts';

const START = { short: 's', long: 'start-offset', argument: 'required' } as const;
const LENGTH = { short: 'l', long: 'max-length', argument: 'required' } as const;

/** Text is printed when there is so much of it. */
const CHUNK = 64 * 1024;

export const map: Verb = {
  options: [Option.format, Option.output, Option.object, Option.imageOpts, Option.forceShare, START, LENGTH],
  async run(line, terminal) {
    const number = (def: typeof START | typeof LENGTH, what: string): number | undefined => {
      const text = line.value(def);
      return text === undefined ? undefined : sizeOf(text, what);
    };
    const start = number(START, 'start offset') ?? 0;
    const length = number(LENGTH, 'max length');
    const { image, json } = line;
    const spec = imageSpec(line, image);
    const how = { forceShare: line.has(Option.forceShare), shareWrites: true, objects: line.objects };
    await withLocalContext((context) =>
      withImage(context, spec, how, async (blk) => {
        let text = json ? '[' : HEAD;
        let count = 0;
        for await (const extent of mapImage(blk, { start, length })) {
          if (!json && extent.data && extent.offset === undefined) {
            terminal.out(text);
            throw new Failure('File contains external, encrypted or compressed clusters.');
          }
          if (json) text += `${count++ === 0 ? '' : ',\n'}${jsonEntry(extent)}`;
          else if (extent.data && !extent.zero) text += humanLine(extent);
          if (text.length < CHUNK) continue;
          terminal.out(text);
          text = '';
        }
        if (json && count === 0) text += jsonEntry({ ...NOTHING, start });
        terminal.out(json ? `${text}]\n` : text);
      }),
    );
    return 0;
  },
};

/** What is said of a range behind the end. */
const NOTHING: MapExtent = {
  ...{ start: 0, length: 0, depth: 0, present: false, zero: false, data: false },
  ...{ offset: undefined, file: undefined },
};

function jsonEntry({ start, length, depth, present, zero, data, offset }: MapExtent): string {
  const place = offset === undefined ? '' : `, "offset": ${offset}`;
  return (
    `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, ` +
    `"zero": ${zero}, "data": ${data}${place}}`
  );
}

const COLUMN = 16;
const HEAD = `${['Offset', 'Length', 'Mapped to'].map((title) => title.padEnd(COLUMN)).join('')}File\n`;

function humanLine({ start, length, offset, file }: MapExtent): string {
  const hex = (value: number): string => (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(COLUMN);
  return `${hex(start)}${hex(length)}${hex(offset ?? 0)}${file ?? ''}\n`;
}
