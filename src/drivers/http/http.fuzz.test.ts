/**
 * Random reads through a server that answers wrongly now and then, in random ways: each read gives the right bytes or
 * an error, none hangs, and a server that behaves is read from again. BLOCKPLANE_FUZZ_RUNS sets how many servers,
 * BLOCKPLANE_FUZZ_SEED which one comes first: the seed in a message repeats it.
 */
import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { pattern } from '../../../test/harness.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import { Prng } from '../../base/prng.ts';
import { KiB, MiB } from '../../base/units.ts';
import { type Opened, openUrl } from './testing.ts';
import { type Asked, RangeServer } from './testing-server.ts';

const RUNS = Number(process.env.BLOCKPLANE_FUZZ_RUNS ?? 20);
const FIRST = Number(process.env.BLOCKPLANE_FUZZ_SEED ?? 1);
/** However many runs were asked for: a test file has 15 minutes. */
const SECONDS_MAX = 13 * 60;
const READS = 32;
const DATA = pattern(3 * MiB, 3);
/** Bytes that are not the file's. */
const WRONG = new Uint8Array(MiB + 1).fill(0xee);

/** A number as a server might say it. */
function number(prng: Prng, right: number): string {
  const others = [right + 1, right - 1, 0, -1, 2 ** 32, 2 ** 53, '18446744073709551616', '', '*', '1e3', '0x10', ' 1'];
  return String(prng.chance(0.6) ? right : prng.pick(others));
}

/** A 206 of which anything may be wrong. The body has wrong bytes where the range said is not the one asked for. */
function wrongRange(prng: Prng, { first, last }: Asked, response: ServerResponse): void {
  const end = Math.min(last, DATA.length - 1);
  const said = [
    number(prng, first),
    number(prng, end),
    prng.chance(0.95) ? String(DATA.length) : number(prng, DATA.length),
  ] as const;
  // A shorter range is allowed.
  const shorter = /^\d+$/.test(said[1]) && Number(said[1]) >= first && Number(said[1]) <= end;
  const right = said[0] === String(first) && shorter && said[2] === String(DATA.length);
  const length = Math.max(0, end - first + 1 + (prng.chance(0.5) ? 0 : prng.between(-20, 20)));
  const bytes = right ? DATA.subarray(first, first + length) : WRONG.subarray(0, length);
  const unit = prng.chance(0.8) ? 'bytes' : prng.pick(['BYTES', 'octets', '']);
  const headers: Record<string, string> = {
    'content-range': `${unit} ${said[0]}-${said[1]}/${said[2]}`,
    etag: '"1"',
  };
  if (prng.chance(0.2)) headers['content-encoding'] = prng.pick(['identity', 'gzip', 'br', 'x']);
  if (prng.chance(0.5)) headers['content-length'] = String(bytes.length);
  // Whole, or cut in the middle.
  response.writeHead(206, headers);
  if (prng.chance(0.7)) response.end(bytes);
  else response.write(bytes.subarray(0, prng.below(bytes.length + 1)), () => response.destroy());
}

function misbehave(prng: Prng, server: RangeServer, asked: Asked, response: ServerResponse): undefined {
  switch (prng.below(8)) {
    case 0:
      response.socket?.resetAndDestroy();
      return;
    case 1:
      response
        .writeHead(prng.pick(prng.chance(0.05) ? [200, 416] : [204, 299, 304, 400, 401, 403, 404, 418, 429, 500, 503]))
        .end(WRONG.subarray(0, 99));
      return;
    case 2:
      response
        .writeHead(prng.pick([301, 302, 303, 307, 308]), { location: prng.pick(['/', '/disk.img', '', 'file:///']) })
        .end();
      return;
    case 3:
      // Less than was asked for, which is allowed.
      server.serve({ ...asked, last: asked.first + prng.below(asked.last - asked.first + 1) }, response);
      return;
    default:
      wrongRange(prng, asked, response);
  }
}

async function readOrFail(disk: Opened, at: number, length: number, seen: Set<string>): Promise<void> {
  try {
    assert.deepEqual(await disk.read(at, length), DATA.subarray(at, at + length), `${length} bytes at ${at}`);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    assert.match(error.message, /^Could not read /);
    seen.add(error.code);
  }
}

async function run(seed: number): Promise<void> {
  const prng = new Prng(seed);
  const ends: (() => unknown)[] = [];
  const after = { after: (end: () => unknown) => void ends.push(end) };
  try {
    const server = await RangeServer.start(after as Parameters<typeof RangeServer.start>[0], DATA);
    const options = { timeout: 1, retries: prng.below(2), readahead: prng.pick([0, 256 * KiB, 2 * MiB]) };
    const disk = await openUrl(after as Parameters<typeof openUrl>[0], server.url(), options);
    const seen = new Set<string>();
    const badness = prng.pick([0.1, 0.5, 1]);
    server.script = (asked, response) => (prng.chance(badness) ? misbehave(prng, server, asked, response) : false);
    let at = 0;
    for (let i = 0; i < READS; i += 4) {
      const together = Array.from({ length: 4 }, () => {
        if (prng.chance(0.5)) at = prng.below(DATA.length);
        const length = Math.min(1 + prng.below(prng.pick([512, 64 * KiB, MiB])), DATA.length - at);
        const read = readOrFail(disk, at, length, seen);
        at = (at + length) % DATA.length;
        return read;
      });
      await Promise.all(together);
    }
    server.script = undefined;
    // What was still being read ahead has been asked for before.
    (await disk.blk.drain()).end();
    // Said to be changed, to a reader or to what reads ahead, it stays so; else it goes on as if nothing had been.
    const last = await disk.read(MiB, 100 * KiB).catch((error: unknown) => error);
    if (last instanceof Uint8Array) assert.deepEqual(last, DATA.subarray(MiB, MiB + 100 * KiB));
    else await assert.rejects(Promise.reject(last), { errno: Errno.ESTALE });
    if (seen.has('ESTALE')) await assert.rejects(disk.read(MiB, 512), { errno: Errno.ESTALE });
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).stack}`);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

test(`${RUNS} servers that break the rules at random, from seed ${FIRST}`, { timeout: 15 * 60_000 }, async () => {
  const began = Date.now();
  for (let i = 0; i < RUNS && Date.now() - began < SECONDS_MAX * 1000; i++) await run(FIRST + i);
});
