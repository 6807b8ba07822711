/** `qemu-img info`. */
import { chainInfo, imageInfo } from '../../img/info.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { infoJson, infoText } from './info-output.ts';
import { jsonText } from './json.ts';
import { imageSpec } from './targets.ts';
import { Option, type Verb } from './verb.ts';

const CHAIN = { long: 'backing-chain' } as const;

export const info: Verb = {
  options: [...[Option.format, Option.output, Option.object, Option.imageOpts, Option.forceShare], CHAIN],
  async run(line, terminal) {
    const { json } = line;
    const spec = imageSpec(line, line.image);
    const how = { forceShare: line.has(Option.forceShare), objects: line.objects };
    const whole = line.has(CHAIN);
    const images = await withLocalContext(async (context) =>
      whole ? await chainInfo(context, spec, how) : [await imageInfo(context, spec, how)],
    );
    if (json) terminal.out(jsonText(whole ? images.map(infoJson) : infoJson(images[0]!)));
    else terminal.out(images.map(infoText).join('\n'));
    return 0;
  },
};
