import { writeSync } from 'node:fs';

/** How long to wait where a pipe is full and does not let itself be waited for. */
const FULL_MS = 1;

/** Writes all of a text to a descriptor, past Node's streams. Nobody who reads (any more) is no error. */
export function writeNow(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_MS);
    }
  }
}
