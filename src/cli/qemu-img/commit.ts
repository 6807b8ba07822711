/** `qemu-img commit`. */
import { commit as commitImage } from '../../img/commit.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { interruptible } from './interrupt.ts';
import { Progress } from './progress.ts';
import { sizeOf } from './sizes.ts';
import { cacheMode, imageSpec, warnProbedRaw } from './targets.ts';
import { Option, type Verb } from './verb.ts';

const BASE = { short: 'b', argument: 'required' } as const;
const KEEP = { short: 'd' } as const;
const SPEED = { short: 'r', argument: 'required' } as const;

const { object, imageOpts, plainFormat, quiet, progress, progressForm, cache } = Option;

export const commit: Verb = {
  options: [object, imageOpts, plainFormat, quiet, progress, progressForm, cache, BASE, KEEP, SPEED],
  async run(line, terminal) {
    const rate = line.value(SPEED);
    const speed = rate === undefined ? 0 : sizeOf(rate, 'rate limit');
    const { image: name } = line;
    const mode = cacheMode(line, cache);
    const options = {
      image: imageSpec(line, name),
      how: { cache: mode, objects: line.objects, onProbedRaw: warnProbedRaw(terminal) },
      ...{ base: line.value(BASE), keep: line.has(KEEP), speed },
    };
    using shown = Progress.of(line, terminal);
    await withLocalContext((context) =>
      interruptible((signal) => commitImage(context, { ...options, signal, onProgress: shown.at })),
    );
    shown.end();
    if (!line.has(quiet)) terminal.out('Image committed.\n');
    return 0;
  },
};
