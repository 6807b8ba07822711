import { readSync } from 'node:fs';
import { StringDecoder } from 'node:string_decoder';

const CHUNK = 4096;
/** Of a line; what is longer is cut in two. */
const LINE_MAX = 1024 * 1024;
/** How long to wait where nothing is there and the descriptor does not let itself be waited for. */
const EMPTY_MS = 10;

/** Answers the next line of the standard input, and undefined at its end. It stops the thread until there is one:
 *  nothing else is to be done meanwhile. */
export function standardInput(): () => string | undefined {
  const bytes = new Uint8Array(CHUNK);
  const decoder = new StringDecoder();
  let rest = '';
  let over = false;
  return () => {
    for (let end = rest.indexOf('\n'); ; end = rest.indexOf('\n')) {
      if (end >= 0 || rest.length > LINE_MAX) {
        const line = rest.slice(0, end < 0 ? LINE_MAX : end);
        rest = rest.slice(end < 0 ? LINE_MAX : end + 1);
        return line;
      }
      if (over) {
        const line = rest;
        rest = '';
        return line === '' ? undefined : line;
      }
      const got = readSome(bytes);
      over = got === 0;
      rest += decoder.write(bytes.subarray(0, got));
    }
  };
}

function readSome(bytes: Uint8Array): number {
  for (;;) {
    try {
      return readSync(0, bytes);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EOF') return 0;
      if (code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, EMPTY_MS);
    }
  }
}
