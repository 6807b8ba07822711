import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import test from 'node:test';
import { pattern, scratch } from '../../../test/harness.ts';
import { Errno } from '../../base/errors.ts';
import { KiB, MiB } from '../../base/units.ts';
import { driverConformance } from '../../block/conformance.ts';
import { openImage } from '../../lib/open-image.ts';
import { BEHIND_HEAD, failure, openUrl } from './testing.ts';
import { RangeServer } from './testing-server.ts';

const DATA = pattern(6 * MiB);
const part = (at: number, length: number): Uint8Array => DATA.subarray(at, at + length);

for (const readahead of [0, 256 * KiB]) {
  driverConformance({
    test: (name, body) => test(`readahead ${readahead}: ${name}`, { timeout: 30_000 }, body),
    name: 'http',
    writable: false,
    async open(size) {
      const ends: (() => Promise<void>)[] = [];
      const server = await RangeServer.start(
        { after: (end) => ends.push(end as () => Promise<void>) },
        new Uint8Array(size),
      );
      const { blk, close } = await openImage({ driver: 'http', 'read-only': true, url: server.url(), readahead });
      return {
        blk,
        async close() {
          await close();
          for (const end of ends) await end();
        },
      };
    },
  });
}

test('opening is one request, and the first 256 KiB are read without another', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url());
  assert.equal(disk.blk.length, DATA.length);
  assert.deepEqual(await disk.read(1000, 200 * KiB), part(1000, 200 * KiB));
  assert.deepEqual(
    server.asked.map(({ first, last }) => [first, last]),
    [[0, 256 * KiB - 1]],
  );
});

test('files of no byte, of one, and as long as the first request', async (t) => {
  for (const length of [0, 1, BEHIND_HEAD, BEHIND_HEAD + 1]) {
    const server = await RangeServer.start(t, DATA.subarray(0, length));
    const disk = await openUrl(t, server.url());
    assert.equal(disk.blk.length, length);
    assert.deepEqual(await disk.read(0, length), DATA.subarray(0, length));
    await disk.close();
  }
});

test('an empty file of a server that answers 200 has no bytes', async (t) => {
  const server = await RangeServer.start(t, new Uint8Array(0));
  server.script = (_asked, response) => void response.writeHead(200, { 'content-length': '0' }).end();
  assert.equal((await openUrl(t, server.url())).blk.length, 0);
});

test('as many random reads are under way as there are connections, and no byte more is asked for', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0, connections: 8 });
  const before = server.bytesAsked;
  // Nobody is answered until eight have asked.
  const held: (() => void)[] = [];
  server.script = (asked, response) => {
    held.push(() => server.serve(asked, response));
    if (held.length < 8) return;
    server.script = undefined;
    for (const answer of held) answer();
  };
  const places = Array.from({ length: 32 }, (_, i) => BEHIND_HEAD + ((i * 37) % 100) * 12_345);
  const all = await Promise.all(places.map((at) => disk.read(at, 4096)));
  for (const [i, at] of places.entries()) assert.deepEqual(all[i], part(at, 4096));
  assert.equal(server.mostOpen, 8);
  assert.equal(server.bytesAsked - before, 32 * 4096);
});

test('reads that depend on one another go over one connection', async (t) => {
  const server = await RangeServer.start(t, DATA);
  let connections = 0;
  server.server.on('connection', () => connections++);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  for (let at = DATA.length - 4096; at > BEHIND_HEAD; at -= 500_000) {
    assert.deepEqual(await disk.read(at, 4096), part(at, 4096));
  }
  assert.equal(connections, 1);
});

test('a large read is several requests side by side', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  assert.deepEqual(await disk.read(1000, 5 * MiB), part(1000, 5 * MiB));
  assert.ok(server.asked.length >= 6);
  assert.ok(server.asked.every(({ first, last }) => last - first < MiB));
});

test('a sequential reader finds the bytes there, and no byte is fetched twice', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 2 * MiB });
  // A line with latency.
  server.script = (asked, response) => void setTimeout(() => server.serve(asked, response), 5);
  for (let at = 0; at < DATA.length; at += 16 * KiB)
    assert.deepEqual(await disk.read(at, 16 * KiB), part(at, 16 * KiB));
  assert.equal(server.mostOpen, 8);
  assert.equal(server.bytesAsked, DATA.length);
  assert.ok(server.asked.length < DATA.length / (64 * KiB));
});

test('what is read ahead is no more than the limit', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const limit = 512 * KiB;
  const disk = await openUrl(t, server.url(), { readahead: limit });
  for (let at = 0; at < 3 * MiB; at += 64 * KiB) {
    await disk.read(at, 64 * KiB);
    const furthest = Math.max(...server.asked.map(({ last }) => last + 1));
    assert.ok(furthest <= Math.max(at + 64 * KiB + limit, BEHIND_HEAD), `at ${at} up to ${furthest} was asked for`);
  }
});

test('sequential readers in four places and random ones between get the right bytes', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: MiB });
  const ends = [0, 1.5 * MiB, 3 * MiB, 4.5 * MiB];
  for (let step = 0; step < 40; step++) {
    await Promise.all([
      ...ends.map(async (start, i) => {
        const at = start + step * 30_000;
        assert.deepEqual(await disk.read(at, 30_000), part(at, 30_000), `stream ${i} at ${at}`);
      }),
      ...[1, 2, 3].map(async (n) => {
        const at = (step * 777_777 + n * 1_234_567) % (DATA.length - 5000);
        assert.deepEqual(await disk.read(at, 5000), part(at, 5000), `random at ${at}`);
      }),
    ]);
  }
});

test('a drained section has no request under way, and readers go on after it', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url());
  for (let at = 0; at < DATA.length / 2; at += 64 * KiB) {
    assert.deepEqual(await disk.read(at, 64 * KiB), part(at, 64 * KiB));
    if (at % MiB !== 0) continue;
    using _drained = await disk.blk.drain();
    assert.equal(disk.blk.root?.impl.drainBusy?.(), false);
  }
});

test('a redirect is followed once and remembered; no credential goes to the other server', async (t) => {
  const target = await RangeServer.start(t, DATA);
  const server = await RangeServer.start(t, DATA);
  server.script = (_asked, response) => void response.writeHead(302, { location: target.url('/elsewhere?a=b') }).end();
  const disk = await openUrl(t, server.url('/x', 'me:secret@'), { cookie: 'a=b', readahead: 0 });
  for (let at = BEHIND_HEAD; at < MiB; at += 100_000) assert.deepEqual(await disk.read(at, 512), part(at, 512));
  assert.equal(server.asked.length, 1);
  assert.equal(server.asked[0]?.headers.authorization, `Basic ${btoa('me:secret')}`);
  assert.equal(server.asked[0]?.headers.cookie, 'a=b');
  assert.ok(target.asked.length > 5);
  for (const { headers, url } of target.asked) {
    assert.equal(headers.authorization, undefined);
    assert.equal(headers.cookie, undefined);
    assert.equal(url, '/elsewhere?a=b');
  }
});

test('a target of a redirect that has expired is asked for again at the URL', async (t) => {
  const server = await RangeServer.start(t, DATA);
  let issue = 0;
  server.script = ({ url }, response) => {
    if (url === '/x') response.writeHead(307, { location: `/signed-${++issue}` }).end();
    else if (url !== `/signed-${issue}`) response.writeHead(403).end();
    else return false;
    return undefined;
  };
  const disk = await openUrl(t, server.url('/x'), { readahead: 0 });
  assert.deepEqual(await disk.read(MiB, 512), part(MiB, 512));
  issue++;
  assert.deepEqual(await disk.read(2 * MiB, 512), part(2 * MiB, 512));
  assert.deepEqual(await disk.read(3 * MiB, 512), part(3 * MiB, 512));
  assert.deepEqual(
    server.asked.map(({ url }) => url),
    ['/x', '/signed-1', '/signed-1', '/signed-1', '/x', '/signed-3', '/signed-3'],
  );
});

test('a body that is cut goes on where it ended', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0, retries: 2 });
  let cuts = 0;
  server.script = (asked, response) => {
    if (cuts++ >= 2) return false;
    response.writeHead(206, {
      'content-range': `bytes ${asked.first}-${asked.last}/${DATA.length}`,
      'content-length': String(asked.last - asked.first + 1),
      etag: '"1"',
    });
    response.write(part(asked.first, 10_000), () => response.destroy());
    return undefined;
  };
  assert.deepEqual(await disk.read(MiB, 100_000), part(MiB, 100_000));
  assert.deepEqual(
    server.asked.slice(1).map(({ first }) => first - MiB),
    [0, 10_000, 20_000],
  );
});

test('a server may send less of a range than was asked for, and is asked for the rest', async (t) => {
  const server = await RangeServer.start(t, DATA);
  server.script = (asked, response) =>
    void server.serve({ ...asked, last: Math.min(asked.last, asked.first + 49_999) }, response);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  assert.deepEqual(await disk.read(MiB, 120_000), part(MiB, 120_000));
});

test('what may pass is tried again, what will not is not', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0, retries: 2 });
  for (const status of [408, 429, 500, 502, 503, 504]) {
    let tries = 0;
    server.script = (_asked, response) => (tries++ > 0 ? false : void response.writeHead(status).end('sorry'));
    assert.deepEqual(await disk.read(MiB, 512), part(MiB, 512), `after ${status}`);
    assert.equal(tries, 2);
  }
  for (const [status, errno] of [
    [404, Errno.ENOENT],
    [403, Errno.EACCES],
    [401, Errno.EACCES],
    [418, Errno.EIO],
  ] as const) {
    const before = server.asked.length;
    server.script = (_asked, response) => void response.writeHead(status).end();
    const error = await failure(disk.read(MiB, 512));
    assert.equal(error.errno, errno);
    assert.match(
      error.message,
      new RegExp(`^Could not read 512 bytes at ${MiB} of 'http://.*': the server answered ${status}`),
    );
    assert.equal(server.asked.length, before + 1);
  }
});

test('retries end, and the next read begins afresh', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0, retries: 2 });
  server.script = (_asked, response) => void response.writeHead(503).end();
  assert.equal((await failure(disk.read(MiB, 512))).errno, Errno.EIO);
  assert.equal(server.asked.length, 1 + 3);
  server.script = undefined;
  assert.deepEqual(await disk.read(MiB, 512), part(MiB, 512));
});

test('bearer token, cookie and user are sent; a line end of the file that they were in is not', async (t) => {
  const server = await RangeServer.start(t, DATA);
  await openUrl(t, server.url(), { 'bearer-token': 'token\n', cookie: 'a=b; c=d' });
  await openUrl(t, server.url(), { username: 'jürgen', password: 'pass:wörd' });
  await openUrl(t, server.url('/', 'a%40b:p%3Aq@'));
  assert.deepEqual(
    server.asked.map(({ headers }) => headers.authorization),
    ['Bearer token', `Basic ${Buffer.from('jürgen:pass:wörd').toString('base64')}`, `Basic ${btoa('a@b:p:q')}`],
  );
  assert.equal(server.asked[0]?.headers.cookie, 'a=b; c=d');
});

test('a proxy is asked for the whole URL of a server without TLS', async (t) => {
  const proxy = await RangeServer.start(t, DATA);
  const secret = { 'proxy-username': 'p', 'proxy-password': 'q' };
  const disk = await openUrl(t, 'http://unreachable.invalid/x?y', { proxy: proxy.url('/'), ...secret, readahead: 0 });
  assert.deepEqual(await disk.read(MiB, 512), part(MiB, 512));
  for (const { url, headers } of proxy.asked) {
    assert.equal(url, 'http://unreachable.invalid/x?y');
    assert.equal(headers.host, 'unreachable.invalid');
    assert.equal(headers['proxy-authorization'], `Basic ${btoa('p:q')}`);
  }
});

test('a server that says nothing is given up in time, and closing does not wait for it', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { timeout: 1, readahead: MiB });
  for (let at = BEHIND_HEAD; at < BEHIND_HEAD + 64 * KiB; at += 16 * KiB) await disk.read(at, 16 * KiB);
  server.script = () => undefined;
  const error = await failure(disk.read(5 * MiB, 512));
  assert.equal(error.errno, Errno.ETIMEDOUT);
  const slow = disk.read(5 * MiB, 512);
  const [ended] = await Promise.allSettled([slow, disk.close()]);
  assert.equal(ended.status, 'rejected');
});

test('a write is refused, and so is a node that should be written', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const refused = openImage({ driver: 'http', url: server.url('/', 'me:secret@') });
  const error = await failure(refused);
  assert.equal(error.errno, Errno.EROFS);
  assert.doesNotMatch(error.message, /secret/);
  const { blk, close } = await openImage({ driver: 'http', 'auto-read-only': true, url: server.url() });
  assert.equal(blk.readOnly, true);
  await close();
});

test('download: a server without ranges is asked for all of the file, once, and nothing of it stays', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const folder = scratch(t);
  const before = process.env.TMPDIR;
  process.env.TMPDIR = folder;
  t.after(() => {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
  });
  server.script = (_asked, response) =>
    void response.writeHead(200, { 'content-length': String(DATA.length) }).end(DATA);
  const disk = await openUrl(t, server.url(), { download: true, cookie: 'a=b' });
  assert.equal(disk.blk.length, DATA.length);
  assert.deepEqual(await disk.read(0, DATA.length), DATA);
  assert.deepEqual(await disk.read(4 * MiB + 5, 7777), part(4 * MiB + 5, 7777));
  assert.deepEqual(
    server.asked.map(({ headers }) => [headers.range !== undefined, headers.cookie]),
    [
      [true, 'a=b'],
      [false, 'a=b'],
    ],
  );
  assert.deepEqual(readdirSync(folder), []);
  await disk.close();
});

test('download: a file that does not come whole, or has no length, is not opened', async (t) => {
  const server = await RangeServer.start(t, DATA);
  server.script = ({ headers }, response) => {
    response.writeHead(200, { 'content-length': String(DATA.length) });
    if (headers.range !== undefined) response.end(DATA);
    else response.write(DATA.subarray(0, MiB), () => response.destroy());
  };
  const cut = await failure(openUrl(t, server.url(), { download: true, retries: 2 }));
  assert.match(cut.message, /^Could not open '.*': (the connection was cut|the response ended \d+ bytes too early)/);
  assert.equal(server.asked.length, 2);
  server.script = (_asked, response) => {
    response.writeHead(200, { 'transfer-encoding': 'chunked' });
    response.end(DATA);
  };
  const endless = await failure(openUrl(t, server.url(), { download: true }));
  assert.match(endless.message, /does not say how long the file is/);
});

test('download: a server with ranges is read by ranges all the same', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { download: true, readahead: 0 });
  assert.deepEqual(await disk.read(5 * MiB, 4096), part(5 * MiB, 4096));
  assert.deepEqual(
    server.asked.map(({ last }) => last),
    [256 * KiB - 1, 5 * MiB + 4095],
  );
});
