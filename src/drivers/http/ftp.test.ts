/** Images on FTP servers, good ones and others. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { test } from 'node:test';
import { certificate, needs, pattern } from '../../../test/harness.ts';
import { Errno } from '../../base/errors.ts';
import { KiB, MiB } from '../../base/units.ts';
import { failure, openUrl } from './testing.ts';
import { FtpServer } from './testing-ftp.ts';

const DATA = pattern(3 * MiB + 100, 11);

test('reads give the bytes of the file, by as many logins as there are connections', async (t) => {
  const server = await FtpServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { connections: 3 });
  const places = [MiB, 2 * MiB + 77, DATA.length - 5000, 0, 300 * KiB, 1, 2 * MiB];
  for (let round = 0; round < 3; round++) {
    const reads = await Promise.all(places.map((at) => disk.read(at, 5000)));
    reads.forEach((bytes, i) => {
      assert.deepEqual(bytes, DATA.subarray(places[i], places[i]! + 5000));
    });
  }
  for (let at = 0; at < DATA.length; at += 64 * KiB) {
    const length = Math.min(64 * KiB, DATA.length - at);
    assert.deepEqual(await disk.read(at, length), DATA.subarray(at, at + length));
  }
  assert.ok(server.logins <= 3, `${server.logins} logins`);
  assert.ok(!server.heard.some((line) => /^(STOR|DELE|APPE|MKD)/.test(line)));
});

test('an empty file has length 0, and one that is shorter than the first request its own', async (t) => {
  for (const length of [0, 1, 5000]) {
    const server = await FtpServer.start(t, DATA.subarray(0, length));
    const disk = await openUrl(t, server.url());
    assert.equal(disk.blk.length, length);
    if (length > 0) assert.deepEqual(await disk.read(0, length), DATA.subarray(0, length));
  }
});

test('TLS covers the data as well, and the certificate counts', needs('openssl'), async (t) => {
  const own = await certificate(t, 'IP:127.0.0.1');
  const server = await FtpServer.start(t, DATA, own);
  assert.equal((await failure(openUrl(t, server.url()))).errno, Errno.EACCES);
  assert.ok(!server.heard.includes('PASS'));
  const disk = await openUrl(t, server.url(), { cafile: own.path });
  assert.deepEqual(await disk.read(MiB, 4096), DATA.subarray(MiB, MiB + 4096));
  assert.ok(server.heard.includes('PROT P'));
  server.script = (command, _argument, control) => command === 'PROT' && control.write('534 no\r\n');
  assert.match((await failure(openUrl(t, server.url(), { sslverify: false }))).message, /answered 534/);
});

test('a file that is changed is an error from then on', async (t) => {
  for (const change of ['size', 'time'] as const) {
    const server = await FtpServer.start(t, DATA);
    const disk = await openUrl(t, server.url());
    await disk.read(MiB, 512);
    if (change === 'size') server.bytes = DATA.subarray(0, 2 * MiB);
    else server.modified = '20260102000000';
    assert.equal((await failure(disk.read(MiB, 512))).errno, Errno.ESTALE);
    server.bytes = DATA;
    server.modified = '20260101000000';
    assert.equal((await failure(disk.read(MiB, 512))).errno, Errno.ESTALE);
  }
});

test('a transfer that is cut goes on where it ended', async (t) => {
  const server = await FtpServer.start(t, DATA);
  server.transfer = (data, from) => void data.end(DATA.subarray(from, from + 100_000));
  const disk = await openUrl(t, server.url(), { retries: 1, readahead: 0 });
  assert.deepEqual(await disk.read(MiB, 250_000), DATA.subarray(MiB, MiB + 250_000));
});

const say = (control: Socket, line: string): true => {
  control.write(`${line}\r\n`);
  return true;
};

/** What a server does, why opening fails, and with which error (default: EIO). */
const HOSTILE: readonly {
  readonly name: string;
  readonly make: (server: FtpServer) => void;
  readonly why: RegExp;
  readonly errno?: number;
}[] = [
  ...['213 x', '213 -1', '213 9007199254740992', '213 99999999999999999999', '213 1e3', '213 1 2', '200 5'].map(
    (line) => ({
      name: `says '${line}' to SIZE`,
      make: (server: FtpServer) => {
        server.script = (command, _argument, control) => command === 'SIZE' && say(control, line);
      },
      why: /how long the file is/,
    }),
  ),
  {
    name: 'does not know REST',
    make: (server) => {
      server.script = (command, _argument, control) => command === 'REST' && say(control, '502 no');
    },
    why: /from within a file/,
    errno: Errno.ENOTSUP,
  },
  {
    name: 'sends data to another host',
    make: (server) => {
      server.script = (command, _argument, control) =>
        (command === 'EPSV' && say(control, '502 no')) ||
        (command === 'PASV' && say(control, '227 go to (192,0,2,1,0,80)'));
    },
    why: /does not speak FTP/,
  },
  {
    name: 'answers without end',
    make: (server) => {
      server.greeting = `220-${'x'.repeat(200_000)}`;
    },
    why: /does not speak FTP/,
  },
  {
    name: 'says nothing',
    make: (server) => {
      server.script = (command) => command === 'TYPE';
    },
    why: /did not answer in time/,
    errno: Errno.ETIMEDOUT,
  },
  {
    name: 'sends no data',
    make: (server) => {
      server.transfer = () => undefined;
    },
    why: /did not answer in time/,
    errno: Errno.ETIMEDOUT,
  },
  {
    name: 'sends too little',
    make: (server) => {
      server.transfer = (data, from) => void data.end(DATA.subarray(from, from + 10));
    },
    why: /too early/,
  },
  {
    name: 'ends the connection',
    make: (server) => {
      server.script = (command, _argument, control) => command === 'RETR' && control.destroy().destroyed;
    },
    why: /was cut/,
    errno: Errno.ECONNRESET,
  },
  {
    name: 'speaks HTTP',
    make: (server) => {
      server.greeting = 'HTTP/1.1 400 Bad Request';
    },
    why: /./,
    errno: Errno.ETIMEDOUT,
  },
];

for (const { name, make, why, errno = Errno.EIO } of HOSTILE) {
  test(`a server that ${name}: one error in bounded time, and no word of the password`, async (t) => {
    const server = await FtpServer.start(t, DATA);
    make(server);
    const error = await failure(openUrl(t, server.url(), errno === Errno.ETIMEDOUT ? { timeout: 0.4 } : {}));
    assert.match(error.message, why);
    assert.equal(error.errno, errno);
    assert.doesNotMatch(`${error.stack} ${JSON.stringify(error.toPlain())}`, /hush/);
  });
}

test('data without end is cut off behind the range', async (t) => {
  const server = await FtpServer.start(t, DATA);
  const disk = await openUrl(t, server.url(), { readahead: 0 });
  let sent = 0;
  server.transfer = (data, from) => {
    data.write(DATA.subarray(from));
    const more = (): void => {
      while (!data.destroyed && data.write(DATA)) sent += DATA.length;
    };
    data.on('drain', more);
    more();
  };
  assert.deepEqual(await disk.read(MiB, 4096), DATA.subarray(MiB, MiB + 4096));
  assert.ok(sent < 64 * MiB, `${sent} bytes were sent`);
});

test('what cannot be is refused, with no secret in the message', async (t) => {
  const server = await FtpServer.start(t, DATA);
  const refused: readonly (readonly [url: string, errno: number, why: RegExp])[] = [
    [server.url('/disk.img', 'me:wrong-hush@'), Errno.EACCES, /530 \(not allowed\)/],
    [server.url('/other.img'), Errno.ENOENT, /550 \(not found\)/],
    [server.url('/a%0d%0aDELE%20disk.img'), Errno.EINVAL, /characters that FTP cannot hold/],
    [server.url('/disk.img', 'me%0d%0aDELE:hush@'), Errno.EINVAL, /username has characters/],
    [server.url('/disk.img', 'me:hush%0a@'), Errno.EINVAL, /password has characters/],
    [server.url('/'), Errno.EINVAL, /names no file/],
    [server.url('/%ff'), Errno.EINVAL, /not percent-encoded/],
  ];
  for (const [url, errno, why] of refused) {
    const error = await failure(openUrl(t, url));
    assert.equal(error.errno, errno);
    assert.match(error.message, why);
    assert.doesNotMatch(`${error.stack} ${JSON.stringify(error.toPlain())}`, /hush/);
  }
  assert.ok(!server.heard.some((line) => line.startsWith('DELE')));
  const cookie = { cookie: 'a=b' };
  assert.match((await failure(openUrl(t, server.url(), cookie))).message, /cookie/);
});
