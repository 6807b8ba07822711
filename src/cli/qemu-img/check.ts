/** `qemu-img check`. */
import { BlockError } from '../../base/errors.ts';
import { checkImage } from '../../img/check.ts';
import type { CheckResult } from '../../lib/image-options.ts';
import { withLocalContext } from '../../lib/local-context.ts';
import { jsonText } from './json.ts';
import { failureText } from './messages.ts';
import { decimals } from './sizes.ts';
import { cacheMode, imageSpec } from './targets.ts';
import { Failure, Misuse, Option, type Terminal, type Verb } from './verb.ts';

const REPAIR = { short: 'r', long: 'repair', argument: 'required' } as const;
const REPAIRS = ['leaks', 'all'] as const;
const Exit = { CLEAN: 0, INCOMPLETE: 1, CORRUPT: 2, LEAKS: 3, UNSUPPORTED: 63 } as const;

export const check: Verb = {
  options: [
    ...[Option.format, REPAIR, Option.output, Option.sourceCache, Option.quiet, Option.forceShare],
    ...[Option.object, Option.imageOpts],
  ],
  async run(line, terminal) {
    const asked = line.value(REPAIR);
    const repair = REPAIRS.find((one) => one === asked);
    if (asked !== repair) throw new Misuse(`Unknown option value for -r (expecting 'leaks' or 'all'): ${asked}`);
    const { image, json } = line;
    const cache = cacheMode(line, Option.sourceCache);
    const spec = imageSpec(line, image);
    const how = { repair, cache, forceShare: line.has(Option.forceShare), objects: line.objects };
    const checked = await withLocalContext((context) => checkImage(context, spec, how).catch(incomplete));
    if (checked === undefined) throw new Failure('This image format does not support checks', Exit.UNSUPPORTED);
    const { result, format } = checked;
    for (const message of result.messages) terminal.err(`${message}\n`);
    if (json) terminal.out(jsonText(resultJson(result, { filename: image, format })));
    else if (!line.has(Option.quiet)) printHuman(result, terminal);
    if (result.checkErrors > 0) return Exit.INCOMPLETE;
    if (result.corruptions > 0) return Exit.CORRUPT;
    return result.leaks > 0 ? Exit.LEAKS : Exit.CLEAN;
  },
};

function incomplete(error: unknown): never {
  if (error instanceof BlockError && error.where.op !== 'open')
    throw new Failure(`Check failed: ${failureText(error)}`);
  throw error;
}

/** What is 0 is left out, but for what a script asks first. */
function resultJson(result: CheckResult, about: { readonly filename: string; readonly format: string }): object {
  const some = (count: number): number | undefined => (count === 0 ? undefined : count);
  return {
    'image-end-offset': some(result.imageEndOffset),
    'compressed-clusters': some(result.compressedClusters),
    'total-clusters': some(result.totalClusters),
    corruptions: some(result.corruptions),
    'corruptions-fixed': some(result.corruptionsFixed),
    'check-errors': result.checkErrors,
    leaks: some(result.leaks),
    'leaks-fixed': some(result.leaksFixed),
    'allocated-clusters': some(result.allocatedClusters),
    ...about,
    'fragmented-clusters': some(result.fragmentedClusters),
  };
}

function printHuman(result: CheckResult, terminal: Terminal): void {
  const { corruptionsFixed, leaksFixed } = result;
  if (corruptionsFixed + leaksFixed > 0) {
    terminal.out(
      `The following inconsistencies were found and repaired:\n\n    ${leaksFixed} leaked clusters\n` +
        `    ${corruptionsFixed} corruptions\n\nDouble checking the fixed image now...\n`,
    );
  }
  terminal.out(`${findings(result)}${statistics(result)}`);
}

function findings({ corruptions, leaks, checkErrors }: CheckResult): string {
  if (corruptions + leaks + checkErrors === 0) return 'No errors were found on the image.\n';
  const parts = [
    corruptions === 0
      ? ''
      : `\n${corruptions} errors were found on the image.\n` +
        'Data may be corrupted, or further writes to the image may corrupt it.\n',
    leaks === 0
      ? ''
      : `\n${leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n`,
    checkErrors === 0 ? '' : `\n${checkErrors} internal errors have occurred during the check.\n`,
  ];
  return parts.join('');
}

function statistics(result: CheckResult): string {
  const { totalClusters: total, allocatedClusters: allocated } = result;
  const percent = (part: number, whole: number): string => `${decimals((100 * part) / whole, 2)}%`;
  const shares =
    total === 0 || allocated === 0
      ? ''
      : `${allocated}/${total} = ${percent(allocated, total)} allocated, ` +
        `${percent(result.fragmentedClusters, allocated)} fragmented, ` +
        `${percent(result.compressedClusters, allocated)} compressed clusters\n`;
  return `${shares}${result.imageEndOffset > 0 ? `Image end offset: ${result.imageEndOffset}\n` : ''}`;
}
