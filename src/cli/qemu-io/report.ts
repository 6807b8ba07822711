/** What is printed of a request that has ended. */
import type { Terminal, VerbLine } from '../qemu-img/verb.ts';
import { sizeText } from './numbers.ts';

/** Options that say how much of it. */
export const REPORT = { quiet: { short: 'q' }, machine: { short: 'C' } } as const;

export interface Done {
  readonly verb: 'read' | 'wrote' | 'discard';
  readonly at: number;
  readonly bytes: number;
  readonly ms: number;
}

export function report(line: VerbLine, terminal: Terminal, { verb, at, bytes, ms }: Done): void {
  if (line.has(REPORT.quiet)) return;
  const seconds = Math.max(ms, 0.001) / 1000;
  const [byteRate, rate] = [bytes / seconds, 1 / seconds];
  if (line.has(REPORT.machine)) {
    terminal.out(`${bytes},1,${clock(seconds)},${byteRate.toFixed(3)},${rate.toFixed(3)}\n`);
    return;
  }
  const time = seconds < 60 ? `${hundredths(seconds)} sec` : clock(seconds);
  terminal.out(
    `${verb} ${bytes}/${bytes} bytes at offset ${at}\n` +
      `${sizeText(bytes)}, 1 ops; ${time} (${sizeText(byteRate)}/sec and ${rate.toFixed(4)} ops/sec)\n`,
  );
}

/** 'h:mm:ss.ss' */
function clock(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, '0')}:${hundredths(seconds % 60)}`;
}

function hundredths(seconds: number): string {
  return (Math.floor(seconds * 100) / 100).toFixed(2).padStart(5, '0');
}

const ROW = 16;
/** Rows that are printed at once. */
const ROWS = 1024;

/** The bytes in rows, with the offset in the image that each begins at. */
export function dump(terminal: Terminal, bytes: Uint8Array, at: number): void {
  let text = '';
  for (let row = 0; row < bytes.length; row += ROW) {
    const part = bytes.subarray(row, row + ROW);
    const hex = Array.from(part, (byte) => `${byte.toString(16).padStart(2, '0')} `).join('');
    const shown = Array.from(part, (byte) => String.fromCharCode(byte)).map((one) =>
      /[0-9A-Za-z]/.test(one) ? one : '.',
    );
    text += `${(at + row).toString(16).padStart(8, '0')}:  ${hex} ${shown.join('')}\n`;
    if (row % (ROW * ROWS) !== 0) continue;
    terminal.out(text);
    text = '';
  }
  terminal.out(text);
}
