/** `blockplane copy`. */
import { copyIn } from '../lib/copy.ts';
import { textOptions } from '../lib/image-options.ts';
import type { JobProgress } from '../lib/job-messages.ts';
import { withLocalEngine } from '../lib/local-engine.ts';
import { CACHE_MODES, formatToMake } from '../lib/options.ts';
import { formatOption, oneOf, readKey, referenceOptions } from './image-args.ts';
import { parseSize, sizeText } from './report.ts';
import type { RawCopyOptions } from './verbs.ts';

const CLEAR_LINE = '\r\x1b[K';

export async function copy(source: string, destination: string, raw: RawCopyOptions): Promise<void> {
  const format = formatOption(raw.outputFormat, '--output-format') ?? formatToMake(destination);
  const mode =
    oneOf(raw.progress, ['none', 'line', 'json'] as const, '--progress') ?? (process.stderr.isTTY ? 'line' : 'none');
  const size = (text: string | undefined, what: string) => (text === undefined ? undefined : parseSize(text, what));
  const interrupted = new AbortController();
  const end = (): void => interrupted.abort(new Error(`Could not copy '${source}': it was interrupted`));
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, end);
  try {
    await withLocalEngine((engine) =>
      copyIn(engine, source, destination, {
        format,
        source: { format: formatOption(raw.format), qcow2: { 'encrypt.key': readKey(raw.keyFile) } },
        destination: { cache: oneOf(raw.cache, CACHE_MODES, '--cache') },
        create: textOptions(format, raw.options ?? []),
        sparse: size(raw.sparse, '--sparse'),
        speed: size(raw.speed, '--speed'),
        ...referenceOptions(raw),
        signal: interrupted.signal,
        onProgress: mode === 'none' ? undefined : mode === 'json' ? jsonLine : liveLine,
      }),
    );
  } finally {
    if (mode === 'line') process.stderr.write(CLEAR_LINE);
    for (const signal of signals) process.off(signal, end);
  }
}

function jsonLine(progress: JobProgress): void {
  process.stdout.write(`${JSON.stringify(progress)}\n`);
}

function liveLine({ current, total }: JobProgress): void {
  const share = total === 0 ? 100 : (100 * current) / total;
  process.stderr.write(`${CLEAR_LINE}${share.toFixed(1)} %  ${sizeText(current)} of ${sizeText(total)}`);
}
