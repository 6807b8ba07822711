/** `blockplane check`. */
import { BlockError, Errno } from '../base/errors.ts';
import type { CheckResult } from '../lib/image-options.ts';
import { checkIn } from '../lib/images.ts';
import { inspect } from '../lib/inspect.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { imageName } from '../lib/options.ts';
import { formatOption, httpOption, oneOf } from './image-args.ts';
import { errorLine } from './report.ts';
import type { RawCheckOptions } from './verbs.ts';

/** The one format that has checks. */
const CHECKED = 'qcow2';
const Exit = { CLEAN: 0, INCOMPLETE: 1, CORRUPT: 2, LEAKS: 3, UNSUPPORTED: 63 } as const;

/** Answers the exit code, which is qemu-img's. */
export async function check(path: string, raw: RawCheckOptions): Promise<number> {
  const output = oneOf(raw.output, ['human', 'json'] as const, '--output');
  const repair = oneOf(raw.repair, ['leaks', 'all'] as const, '--repair');
  const format = formatOption(raw.format);
  const http = httpOption(raw.httpOpts);
  try {
    const result = await withLocalEngine((engine) => checkIn(engine, path, { format, http, repair }));
    const about = { filename: imageName(path), format: CHECKED };
    process.stdout.write(output === 'json' ? `${JSON.stringify(json(result, about), null, 4)}\n` : text(result));
    return exitCode(result);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    process.stderr.write(errorLine(error));
    return error.errno === Errno.ENOTSUP && !(await isChecked(path, { format, http }))
      ? Exit.UNSUPPORTED
      : Exit.INCOMPLETE;
  }
}

/** False for an image of which only the format stands in the way. */
async function isChecked(path: string, options: Parameters<typeof inspect>[1]): Promise<boolean> {
  return inspect(path, options).then(
    (image) => image.format === CHECKED,
    () => true,
  );
}

/** By what is left, after repairs. */
export function exitCode({ checkErrors, corruptions, leaks }: CheckResult): number {
  if (checkErrors > 0) return Exit.INCOMPLETE;
  if (corruptions > 0) return Exit.CORRUPT;
  return leaks > 0 ? Exit.LEAKS : Exit.CLEAN;
}

function json(result: CheckResult, about: { readonly filename: string; readonly format: string }): object {
  return {
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    'check-errors': result.checkErrors,
    leaks: result.leaks,
    corruptions: result.corruptions,
    'leaks-fixed': result.leaksFixed,
    'corruptions-fixed': result.corruptionsFixed,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
    ...about,
  };
}

function text(result: CheckResult): string {
  const { corruptions, leaks, checkErrors, totalClusters: total, allocatedClusters: allocated } = result;
  const lines = [...result.messages];
  const { corruptionsFixed, leaksFixed } = result;
  if (corruptionsFixed + leaksFixed > 0) {
    lines.push(`Repaired: ${leaksFixed} leaked clusters, ${corruptionsFixed} corruptions`);
  }
  if (corruptions > 0) lines.push(`${corruptions} errors were found: data may be lost, writes may damage more`);
  if (leaks > 0) lines.push(`${leaks} leaked clusters were found: disk space is lost, no data is`);
  if (checkErrors > 0) lines.push(`${checkErrors} places could not be looked at`);
  if (corruptions + leaks + checkErrors === 0) lines.push('No errors were found on the image');
  if (total > 0) {
    const percent = (part: number, whole: number): string => `${(whole === 0 ? 0 : (100 * part) / whole).toFixed(2)}%`;
    const { fragmentedClusters: fragmented, compressedClusters: compressed } = result;
    const shares = `${percent(fragmented, allocated)} fragmented, ${percent(compressed, allocated)} compressed`;
    lines.push(`${allocated}/${total} = ${percent(allocated, total)} allocated, ${shares} clusters`);
  }
  lines.push(`Image end offset: ${result.imageEndOffset}`);
  return `${lines.join('\n')}\n`;
}
