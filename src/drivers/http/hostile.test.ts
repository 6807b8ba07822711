/**
 * Servers that break the rules, by mistake or on purpose: the request fails, nothing counts as read, memory and time
 * have a bound, and when the server behaves again so does the node.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import test from 'node:test';
import { gzipSync } from 'node:zlib';
import { pattern } from '../../../test/harness.ts';
import { Errno } from '../../base/errors.ts';
import { KiB, MiB } from '../../base/units.ts';
import { failure, openUrl } from './testing.ts';
import { type Asked, RangeServer } from './testing-server.ts';

const DATA = pattern(2 * MiB);
const AT = MiB;
const LENGTH = 4096;

interface Case {
  readonly name: string;
  readonly answer: (asked: Asked, response: ServerResponse, server: RangeServer) => void;
  readonly why: RegExp;
  readonly errno?: number;
  /** Where it is no fault in the first answer, or none later. */
  readonly only?: 'open' | 'read';
}

const range = (asked: Asked, total: number | string = DATA.length): string =>
  `bytes ${asked.first}-${asked.last}/${total}`;

/** A 206 with these headers in the place of the right ones. */
function wrong(headers: Record<string, string>, body?: Uint8Array): Case['answer'] {
  return (asked, response) => {
    const right = { 'content-range': range(asked), etag: '"1"' };
    response.writeHead(206, { ...right, ...headers }).end(body ?? DATA.subarray(asked.first, asked.last + 1));
  };
}

const contentRange = (make: (asked: Asked) => string): Case['answer'] => {
  return (asked, response, server) => wrong({ 'content-range': make(asked) })(asked, response, server);
};

const RANGE_WHY = /does not say which bytes|were not asked for/;

const CASES: readonly Case[] = [
  {
    name: 'another first byte',
    answer: contentRange(({ first, last }) => `bytes ${first + 1}-${last}/${DATA.length}`),
    why: RANGE_WHY,
  },
  {
    name: 'a later last byte',
    answer: contentRange(({ first, last }) => `bytes ${first}-${last + 1}/${DATA.length}`),
    why: RANGE_WHY,
  },
  {
    name: 'a range that ends before it begins',
    answer: contentRange(({ first, last }) => `bytes ${last}-${first}/${DATA.length}`),
    why: RANGE_WHY,
  },
  {
    name: 'a range beyond the length',
    answer: contentRange(({ first, last }) => `bytes ${first}-${last}/${last}`),
    why: RANGE_WHY,
  },
  { name: 'no length', answer: contentRange((asked) => range(asked, '*')), why: RANGE_WHY },
  { name: 'a negative length', answer: contentRange((asked) => range(asked, '-1')), why: RANGE_WHY },
  { name: 'a length of 2^53', answer: contentRange((asked) => range(asked, '9007199254740992')), why: RANGE_WHY },
  { name: 'a length of 2^64', answer: contentRange((asked) => range(asked, '18446744073709551616')), why: RANGE_WHY },
  { name: 'a length in hexadecimal', answer: contentRange((asked) => range(asked, '0x7fffffff')), why: RANGE_WHY },
  {
    name: 'another unit',
    answer: contentRange(({ first, last }) => `items ${first}-${last}/${DATA.length}`),
    why: RANGE_WHY,
  },
  { name: 'two ranges', answer: contentRange((asked) => `${range(asked)}, ${range(asked)}`), why: RANGE_WHY },
  {
    name: 'a multipart body',
    answer: (_a, response) => void response.writeHead(206, { 'content-type': 'multipart/byteranges' }).end('x'),
    why: RANGE_WHY,
  },
  {
    name: 'a compressed body',
    answer: wrong({ 'content-encoding': 'gzip' }, gzipSync(new Uint8Array(64 * MiB))),
    why: /encodes the content/,
  },
  {
    name: 'a body with an unknown coding',
    answer: wrong({ 'content-encoding': 'br\u00a0x' }),
    why: /encodes the content/,
  },
  {
    name: 'a body that is too short',
    answer: (a, r, s) => wrong({}, DATA.subarray(a.first, a.last - 5))(a, r, s),
    why: /ended 6 bytes too early/,
  },
  { name: 'no body', answer: wrong({}, new Uint8Array(0)), why: /too early/ },
  {
    name: 'a body that is a byte too long',
    answer: (a, r, s) => wrong({}, DATA.subarray(a.first, a.last + 2))(a, r, s),
    why: /more bytes than it announced/,
  },
  {
    name: 'a Content-Length that does not fit',
    answer: (a, r, s) => wrong({ 'content-length': '1000' }, DATA.subarray(0, 1000))(a, r, s),
    why: /do not fit together/,
  },
  {
    name: 'a redirect to itself',
    answer: ({ url }, response) => void response.writeHead(302, { location: url }).end(),
    why: /more than 8 redirects/,
    errno: Errno.ELOOP,
  },
  {
    name: 'a redirect to a file',
    answer: (_a, response) => void response.writeHead(302, { location: 'file:///etc/passwd' }).end(),
    why: /redirects to 'file:'/,
  },
  {
    name: 'a redirect to ftp',
    answer: (_a, response) => void response.writeHead(302, { location: 'ftp://127.0.0.1/' }).end(),
    why: /redirects to 'ftp:'/,
  },
  {
    name: 'a redirect without a place',
    answer: (_a, response) => void response.writeHead(302).end(),
    why: /redirects to nowhere/,
  },
  {
    name: 'a redirect to no URL',
    answer: (_a, response) => void response.writeHead(302, { location: 'http://[' }).end(),
    why: /redirects to nowhere/,
  },
  {
    name: 'no ranges',
    answer: (_a, response) => void response.writeHead(200, { etag: '"1"' }).end(DATA),
    why: /does not serve ranges, which are needed/,
    errno: Errno.ENOTSUP,
    only: 'open',
  },
  {
    name: 'no ranges any more',
    answer: (_a, response) => void response.writeHead(200, { etag: '"1"' }).end(DATA),
    why: /does not serve ranges any more/,
    only: 'read',
  },
  {
    name: 'a status without meaning',
    answer: (_a, response) => void response.writeHead(299).end(),
    why: /answered 299/,
  },
];

for (const { name, answer, why, errno = Errno.EIO, only } of CASES) {
  test(`${name}: an error, nothing read, and the next read is right`, async (t) => {
    const server = await RangeServer.start(t, DATA);
    const bad = (asked: Asked, response: ServerResponse): undefined => void answer(asked, response, server);
    if (only !== 'read') {
      server.script = bad;
      const error = await failure(openUrl(t, server.url()));
      assert.match(error.message, why);
      assert.match(error.message, /^Could not (open|read \d+ bytes at 0 of) 'http:/);
      assert.equal(error.errno, errno);
    }
    if (only === 'open') return;
    server.script = undefined;
    const disk = await openUrl(t, server.url(), { readahead: 0 });
    server.script = bad;
    const error = await failure(disk.read(AT, LENGTH));
    assert.match(error.message, why);
    assert.equal(error.errno, errno);
    server.script = undefined;
    assert.deepEqual(await disk.read(AT, LENGTH), DATA.subarray(AT, AT + LENGTH));
  });
}

const CHANGES: readonly {
  readonly name: string;
  readonly change: (server: RangeServer) => void;
  readonly why: RegExp;
}[] = [
  {
    name: 'another ETag',
    change: (server) => {
      server.etag = '"2"';
    },
    why: /its ETag differs/,
  },
  {
    name: 'another weak ETag',
    change: (server) => {
      server.etag = 'W/"2"';
    },
    why: /its ETag differs/,
  },
  {
    name: 'no ETag any more',
    change: (server) => {
      server.etag = undefined;
    },
    why: /its ETag differs/,
  },
  {
    name: 'another length',
    change: (server) => {
      server.bytes = pattern(3 * MiB);
    },
    why: /it had 2097152 bytes, and has 3145728/,
  },
  {
    name: 'a file that ends before',
    change: (server) => {
      server.bytes = pattern(KiB);
    },
    why: /shorter than it was/,
  },
  {
    name: 'a whole file, since If-Range does not hold',
    change: (server) => {
      server.script = (_asked, response) => void response.writeHead(200, { etag: '"2"' }).end(DATA);
    },
    why: /its ETag differs/,
  },
];

for (const { name, change, why } of CHANGES) {
  test(`the file is changed (${name}): ESTALE, now and from then on, and never a mixture`, async (t) => {
    const server = await RangeServer.start(t, DATA);
    const disk = await openUrl(t, server.url());
    assert.deepEqual(await disk.read(AT, LENGTH), DATA.subarray(AT, AT + LENGTH));
    assert.equal(server.asked.at(-1)?.headers['if-range'], '"1"');
    change(server);
    const error = await failure(disk.read(AT - 64 * KiB, 128 * KiB));
    assert.equal(error.errno, Errno.ESTALE);
    assert.match(error.message, why);
    const asked = server.asked.length;
    assert.equal((await failure(disk.read(0, 512))).errno, Errno.ESTALE);
    assert.equal((await failure(disk.read(AT, 512))).errno, Errno.ESTALE);
    assert.equal(server.asked.length, asked);
  });
}

test('without an ETag, Last-Modified is what a file is known by', async (t) => {
  const server = await RangeServer.start(t, DATA);
  server.etag = undefined;
  server.lastModified = 'Thu, 01 Jan 2026 00:00:00 GMT';
  const disk = await openUrl(t, server.url());
  await disk.read(AT, LENGTH);
  server.lastModified = 'Thu, 01 Jan 2026 00:00:01 GMT';
  assert.match((await failure(disk.read(AT, LENGTH))).message, /its Last-Modified differs/);
});

test('a body without end is cut off after what was announced', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  let sent = 0;
  let closed: Promise<unknown> | undefined;
  server.script = (asked, response) => {
    response.writeHead(206, { 'content-range': range(asked), etag: '"1"' });
    const more = (): void => {
      while (!response.destroyed && response.write(DATA)) sent += DATA.length;
    };
    closed = once(response, 'close');
    response.on('drain', more);
    more();
    return undefined;
  };
  assert.match((await failure(disk.read(AT, LENGTH))).message, /more bytes than it announced/);
  await closed;
  assert.ok(sent < 64 * MiB, `${sent} bytes were sent`);
});

test('a body that comes too slowly is given up, and so is one that stops', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0, timeout: 1 });
  for (const drip of [true, false]) {
    server.script = (asked, response) => {
      response.writeHead(206, { 'content-range': range(asked), etag: '"1"' });
      response.write(DATA.subarray(asked.first, asked.first + 1));
      if (!drip) return undefined;
      const timer = setInterval(() => response.write('x'), 20);
      response.on('close', () => clearInterval(timer));
      return undefined;
    };
    assert.equal((await failure(disk.read(AT, LENGTH))).errno, Errno.ETIMEDOUT);
  }
  server.script = undefined;
  assert.deepEqual(await disk.read(AT, LENGTH), DATA.subarray(AT, AT + LENGTH));
});

test('a range in pieces of one byte comes to an end', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  server.script = (asked, response) => void server.serve({ ...asked, last: asked.first }, response);
  assert.match((await failure(disk.read(AT, LENGTH))).message, /too many pieces/);
  assert.ok(server.asked.length < 200);
});

/** A server that speaks, or does not speak, whatever `talk` says. */
async function rawServer(t: test.TestContext, talk: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on('error', () => undefined));
    talk(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/x`;
}

/** Writes `text` until the other side has gone. */
function flood(socket: Socket, text: string): void {
  let sent = 0;
  const more = (): void => {
    while (!socket.destroyed && socket.write(text)) {
      sent += text.length;
      if (sent > 256 * MiB) socket.destroy();
    }
  };
  socket.on('drain', more);
  more();
}

const TALKERS: readonly { readonly name: string; readonly talk: (socket: Socket) => void; readonly why: RegExp }[] = [
  {
    name: 'headers without end',
    talk: (socket) => {
      socket.write('HTTP/1.1 206 OK\r\n');
      flood(socket, `x-more: ${'y'.repeat(1000)}\r\n`);
    },
    why: /headers of the response do not end/,
  },
  {
    name: 'one header without end',
    talk: (socket) => {
      socket.write('HTTP/1.1 206 OK\r\nx-more: ');
      flood(socket, 'y'.repeat(64 * KiB));
    },
    why: /headers of the response do not end/,
  },
  {
    name: 'heads of 1xx without end',
    talk: (socket) => flood(socket, 'HTTP/1.1 103 Early\r\n\r\n'.repeat(100)),
    why: /./,
  },
  { name: 'another protocol', talk: (socket) => void socket.end('SSH-2.0-OpenSSH_9\r\n'), why: /does not speak HTTP/ },
  { name: 'no word', talk: () => undefined, why: /did not answer in time/ },
  { name: 'an end at once', talk: (socket) => void socket.end(), why: /connection was cut/ },
  { name: 'a cut at once', talk: (socket) => void socket.resetAndDestroy(), why: /connection was cut/ },
  {
    name: 'two lengths',
    talk: (socket) =>
      void socket.end(
        'HTTP/1.1 206 OK\r\ncontent-range: bytes 0-0/1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx',
      ),
    why: /./,
  },
  {
    name: 'a compressed transfer',
    talk: (socket) =>
      void socket.end(
        'HTTP/1.1 206 OK\r\ncontent-range: bytes 0-0/1\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n',
      ),
    why: /./,
  },
];

for (const { name, talk, why } of TALKERS) {
  test(`a server that sends ${name}: an error in bounded time`, async (t) => {
    const url = await rawServer(t, (socket) => socket.once('data', () => talk(socket)));
    const before = process.memoryUsage().rss;
    const error = await failure(openUrl(t, url, { timeout: 0.5 }));
    assert.match(error.message, why);
    const grown = process.memoryUsage().rss - before;
    assert.ok(grown < 128 * MiB, `memory grew by ${grown} bytes`);
  });
}

test('nobody listens, and no host of that name', async (t) => {
  const server = await RangeServer.start(t, DATA);
  const url = server.url();
  await server.stop();
  assert.equal((await failure(openUrl(t, url))).errno, Errno.ECONNREFUSED);
  assert.equal((await failure(openUrl(t, 'http://no-such-host.invalid/'))).errno, Errno.ENXIO);
});

const SECRETS = /hush|aHVzaA|:1@/;
const BAD_OPTIONS: readonly (readonly [options: Record<string, unknown>, why: RegExp])[] = [
  [{ url: 'http://me:hush@[/x?hush' }, /it is not a URL/],
  [{ url: 'hush' }, /it is not a URL/],
  [{ url: 'ftp://me:hush@host/x' }, /'ftp:' is not what this driver is for/],
  [{ url: 'https://me:hush@host/x' }, /'https:' is not what this driver is for/],
  [{ url: 'http://me:%ffhush@host/' }, /not percent-encoded/],
  [{ url: 5 }, /option 'url' is not a string/],
  [{ password: 'hush' }, /'password' needs 'username'/],
  [{ 'bearer-token': 'hush\r\nX-Evil: 1' }, /'bearer-token' has characters/],
  [{ cookie: 'hush\nx' }, /'cookie' has characters/],
  [{ username: 'a:hush' }, /cannot have ':'/],
  [{ username: 'a', password: 'hush', 'bearer-token': 'hush' }, /give one of them/],
  [{ url: 'http://me:hush@h/', username: 'a' }, /give one of them/],
  [{ connections: 0 }, /'connections' is 0, not from 1 to 64/],
  [{ connections: 1.5 }, /not a whole number/],
  [{ timeout: 0 }, /'timeout' is 0/],
  [{ readahead: 2 ** 40 }, /'readahead' is/],
  [{ cafile: '/nonexistent' }, /'cafile': could not read '\/nonexistent'/],
  [{ proxy: 'socks5://me:hush@host' }, /'socks5:' is not/],
  [{ 'proxy-password': 'hush' }, /without 'proxy'/],
];

for (const [options, why] of BAD_OPTIONS) {
  test(`refused, with no secret in the message: ${Object.keys(options).join(', ')} (${why.source})`, async (t) => {
    const error = await failure(openUrl(t, 'http://h/', options as Record<string, string>));
    assert.match(error.message, why);
    assert.doesNotMatch(JSON.stringify(error.toPlain()), SECRETS);
    assert.doesNotMatch(String(error.stack), SECRETS);
  });
}
