/** Monitors over each kind of character device. Where qemu-storage-daemon does the same, both are spoken to. */
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { on, once } from 'node:events';
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { createConnection, createServer, Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { type TestContext, test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { ReadStream } from 'node:tty';
import { unixPath } from '../../src/daemon/chardev/address.ts';
import { abstractSocket } from '../../src/native/abstract-socket.ts';
import { openPseudoTerminal } from '../../src/native/char-device.ts';
import { nativeAbsence } from '../../src/native/lib.ts';
import { MAIN, needs, peer, run, scratch } from '../harness.ts';
import { authority, certificate } from '../pki.ts';
import { converse, type Fields, Peer, step } from './conversation.ts';

const THEIRS = ['/usr/bin/qemu-storage-daemon'];
const OURS = [process.execPath, MAIN, 'qemu-storage-daemon'];
const WITH_QSD = needs('qemu-storage-daemon');
const absence = nativeAbsence();
const NATIVE = { timeout: 60_000, skip: absence === undefined ? false : absence };
const COMMAND = '{"execute":"qmp_capabilities"}\n';
const QUERY = '{"execute":"query-jobs"}\n';

/** One end of a conversation. */
class Line {
  readonly #send: (text: string) => void;
  #text = '';
  #wake: () => void = () => undefined;

  constructor(send: (text: string) => void) {
    this.#send = send;
  }

  static over(stream: Duplex): Line {
    const line = new Line((text) => stream.write(text));
    stream.on('data', (bytes: Uint8Array) => line.heard(Buffer.from(bytes).toString('latin1')));
    stream.on('error', () => undefined);
    return line;
  }

  heard(text: string): void {
    this.#text += text;
    this.#wake();
  }

  say(text: string): void {
    this.#send(text);
  }

  /** Waits for what matches, or for these words, and answers all up to its end. */
  async until(wanted: RegExp | string): Promise<string> {
    for (;;) {
      const at = typeof wanted === 'string' ? this.#text.indexOf(wanted) : this.#text.search(wanted);
      if (at >= 0) {
        const found = typeof wanted === 'string' ? wanted : wanted.exec(this.#text)![0];
        const all = this.#text.slice(0, at + found.length);
        this.#text = this.#text.slice(all.length);
        return all;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Says something, and waits for the answer. */
  ask(text: string, answer: RegExp | string): Promise<string> {
    this.say(text);
    return this.until(answer);
  }
}

/** The same with both daemons, whose directories have short names. */
async function withBoth(
  t: TestContext,
  args: readonly string[],
  body: (daemon: Peer, command: readonly string[]) => Promise<void>,
): Promise<void> {
  for (const command of [THEIRS, OURS]) {
    const daemon = await Peer.start(t, scratch(t), command, args);
    await body(daemon, command);
    assert.equal(await daemon.quit(), 0, command.at(-1));
  }
}

async function filenameOf(daemon: Peer, label: string): Promise<string> {
  const { return: list } = await daemon.execute('query-chardev', {});
  return String((list as readonly Fields[]).find((entry) => entry.label === label)!.filename);
}

/** Opens a terminal as a user would. */
function terminal(path: string): { readonly line: Line; readonly close: () => Promise<void> } {
  const fd = openSync(path, 'r+');
  const input = new ReadStream(fd);
  const line = new Line((text) => writeSync(fd, text));
  input.on('data', (bytes: Uint8Array) => line.heard(Buffer.from(bytes).toString('latin1')));
  const close = async (): Promise<void> => {
    const closed = once(input, 'close');
    input.destroy();
    await closed;
    // The reader had opened it anew.
    closeSync(fd);
  };
  return { line, close };
}

/** Opens a terminal until it was noticed that somebody else does. */
async function newSession(path: string): Promise<ReturnType<typeof terminal>> {
  for (;;) {
    const opened = terminal(path);
    const answer = await opened.line.ask(QUERY, /CommandNotFound.*\r\n|"return": \[\]\}\r\n/);
    if (answer.includes('CommandNotFound')) {
      assert.match(answer, /^\{"QMP": .*\r\n/);
      return opened;
    }
    await opened.close();
  }
}

test('devices are added, changed, listed and taken away as there', WITH_QSD, async (t) => {
  const inet = (port: string, more: Fields = {}): Fields => ({
    addr: { type: 'inet', data: { host: '127.0.0.1', port, ...more } },
  });
  const add = (id: string, type: string, data: Fields = {}, more: Parameters<typeof step>[2] = {}) =>
    step('chardev-add', { id, backend: { type, data } }, more);
  const remote = { type: 'inet', data: { host: '127.0.0.1', port: '9' } };
  const kinds = ['msmouse', 'wctablet', 'braille', 'testdev', 'console', 'vc', 'qemu-vdagent'];
  await converse(t, [
    step('query-chardev-backends'),
    ...kinds.map((kind) => add(kind, kind)),
    add('spice', 'spicevmc', { type: 'x' }),
    add('dbus', 'dbus', { name: 'x' }),
    add('u', 'udp', { remote }),
    add('u2', 'udp', { remote, local: { type: 'inet', data: { host: '127.0.0.1', port: '0' } } }),
    add('u3', 'udp', { remote: { type: 'unix', data: { path: '/x' } } }),
    add('m', 'mux', { chardev: 'u' }),
    add('m1', 'mux', { chardev: 'u' }),
    add('m2', 'mux', { chardev: 'nothing' }),
    add('m3', 'mux', { chardev: 'mon' }),
    add('m4', 'mux', { chardev: 'm' }),
    add('s', 'serial', { device: '/dev/null' }),
    add('s2', 'serial', { device: '/dev/there-is-none' }),
    add('p', 'parallel', { device: '/dev/null' }),
    add('p2', 'parallel', { device: '/dev/there-is-none' }),
    add('pipe', 'pipe', { device: '$DIR/none' }),
    add('f', 'file', { out: '$DIR/none/out' }),
    add('f2', 'file', { out: '$DIR/out', in: '$DIR/none' }),
    add('l', 'null', { logfile: '$DIR/none/log' }),
    add('l2', 'null', { logfile: '$DIR/log', logappend: true }),
    add('io', 'stdio'),
    add('io2', 'stdio'),
    add('t', 'socket', { ...inet('1'), server: false }),
    add('t1', 'socket', { ...inet('1'), server: false, wait: true }),
    add('t2', 'socket', { ...inet('1'), server: false, websocket: true }),
    add('t3', 'socket', { ...inet('0'), wait: false, reconnect: 1 }),
    add('t4', 'socket', { ...inet('0'), wait: false, 'tls-creds': 'nothing' }),
    add('t5', 'socket', { ...inet('0'), wait: false, 'tls-authz': 'nothing' }),
    add('t6', 'socket', { ...inet('0', { ipv6: true }), wait: false }),
    add('t7', 'socket', { ...inet('0', { ipv4: false, ipv6: false }), wait: false }, { words: true }),
    add('t8', 'socket', { addr: { type: 'unix', data: { path: '$DIR/none/sock' } }, wait: false }),
    add('t9', 'socket', { addr: { type: 'unix', data: { path: '$DIR/none' } }, server: false }),
    step('query-chardev'),
    ...['u', 'm', 'u2', 'io', 's', 'nothing'].map((id) => step('chardev-remove', { id })),
    ...['u', 'm', 'u2', 'nothing'].map((id) => step('chardev-send-break', { id })),
    add('c', 'null'),
    step('chardev-change', { id: 'c', backend: { type: 'ringbuf', data: {} } }),
    step('chardev-change', { id: 'm', backend: { type: 'null', data: {} } }),
    step('chardev-change', { id: 'u', backend: { type: 'null', data: {} } }),
    step('query-chardev'),
  ]);
});

test('each one who opens a pseudo-terminal is greeted, and begins anew', { ...NATIVE, ...WITH_QSD }, async (t) => {
  await withBoth(t, ['--chardev', 'pty,id=p', '--monitor', 'chardev=p'], async (daemon) => {
    const filename = await filenameOf(daemon, 'p');
    assert.match(filename, /^pty:\/dev\/pts\/\d+$/);
    for (let user = 0; user < 3; user++) {
      const { line, close } = await newSession(filename.slice('pty:'.length));
      await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/);
      await line.ask(QUERY, /^\{"return": \[\]\}\r\n/);
      // More than a terminal holds.
      await line.ask('{"execute":"query-qmp-schema"}\n', /^\{"return": \[.*\]\}\r\n/);
      await close();
    }
  });
});

test('a pseudo-terminal that is added at run time is named in the answer', NATIVE, async (t) => {
  const directory = scratch(t);
  const daemon = await Peer.start(t, directory, OURS, []);
  const path = join(directory, 'tty');
  const { return: told } = await daemon.execute('chardev-add', { id: 'p', backend: { type: 'pty', data: { path } } });
  assert.equal(await filenameOf(daemon, 'p'), `pty:${(told as Fields).pty}`);
  const { close } = terminal(path);
  await close();
  assert.deepEqual({ ...(await daemon.execute('chardev-remove', { id: 'p' })) }, { return: {} });
  assert.throws(() => readFileSync(path), /ENOENT/);
  await daemon.quit();
});

test('a serial line carries a monitor', NATIVE, async (t) => {
  const other = openPseudoTerminal();
  assert.ok(typeof other === 'object');
  const input = new ReadStream(other.fd);
  t.after(() => input.destroy());
  const line = new Line((text) => writeSync(other.fd, text));
  input.on('error', () => undefined);
  const keep = openSync(other.path, 'r+');
  input.on('data', (bytes: Uint8Array) => line.heard(Buffer.from(bytes).toString('latin1')));
  const daemon = await Peer.start(t, scratch(t), OURS, [
    '--chardev',
    `serial,id=s,path=${other.path}`,
    '--monitor',
    's',
  ]);
  await line.until(/"QMP".*\r\n/);
  await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/);
  assert.equal(await filenameOf(daemon, 's'), 'serial');
  assert.deepEqual({ ...(await daemon.execute('chardev-send-break', { id: 's' })) }, { return: {} });
  await daemon.quit();
  assert.ok(keep > 0);
});

test('monitors on one mux all speak, and Ctrl-A C gives the word to the next', WITH_QSD, async (t) => {
  const args = [
    ...['--chardev', 'socket,id=m,path=$DIR/mux,server=on,wait=off,mux=on'],
    ...['--monitor', 'm', '--monitor', 'm,pretty=on'],
  ];
  await withBoth(t, args, async (daemon, [program]) => {
    const socket = createConnection(join(daemon.directory, 'mux'));
    const line = Line.over(socket);
    await line.until(/"QMP".*\r\n[\s\S]*"QMP"[\s\S]*\r\n\}\r\n/);
    const either = /^\{"return": \{\}\}\r\n|^\{\r\n {4}"return": \{[\s\S]*\}\r\n\}\r\n/;
    const first = await line.ask(COMMAND, either);
    const second = await line.ask(`\u0001c${COMMAND}`, either);
    // There it is chance who has the word to begin with.
    const pretty = [first, second].map((answer) => answer.startsWith('{\r\n'));
    if (program === OURS[0]) assert.deepEqual(pretty, [false, true]);
    assert.deepEqual([...pretty].sort(), [false, true]);
    if (pretty[1]) line.say('\u0001c');
    await line.ask(`\u0001c${QUERY}`, /^\{\r\n {4}"return": \[[\s\S]*\]\r\n\}\r\n/);
    await line.ask(`\u0001c${QUERY}`, /^\{"return": \[\]\}\r\n/);
    await line.ask('\u0001h', /C-a C-a.*\n\r/);
    await line.ask(`\u0001t${QUERY}${QUERY}`, /^\{"return": \[\]\}\r\n\[00:00:0\d\.\d{3}\] \{"return": \[\]\}\r\n/);
    await line.ask(`\u0001t\u0001z${QUERY}`, /^\{"return": \[\]\}\r\n/);
    await line.ask('\u0001\u0001', /stray '\\u0001'/);
    await daemon.execute('block-export-del', { id: 'nothing' });
    assert.deepEqual(
      [await filenameOf(daemon, 'm'), (await filenameOf(daemon, 'm-base')).replace(daemon.directory, '')],
      ['mux', 'unix:/mux,server=on'],
      program,
    );
    socket.destroy();
    const again = createConnection(join(daemon.directory, 'mux'));
    await Line.over(again).until(/"QMP".*\r\n[\s\S]*"QMP"[\s\S]*\r\n\}\r\n/);
    again.destroy();
  });
});

test('Ctrl-A X on a mux ends the daemon, and a mux has four users', async (t) => {
  const mux = ['--chardev', 'null,id=n,mux=on', ...Array.from({ length: 4 }, () => ['--monitor', 'n']).flat()];
  const { stderr } = await run(OURS[0]!, [...OURS.slice(1), ...mux, '--monitor', 'n']);
  assert.match(stderr, /--monitor n: Device 'n' is in use\n$/);
  const directory = scratch(t);
  const args = ['--chardev', 'socket,id=m,path=$DIR/mux,server=on,wait=off,mux=on', '--monitor', 'm'];
  await Peer.start(t, directory, OURS, args);
  const socket = createConnection(join(directory, 'mux'));
  const line = Line.over(socket);
  const closed = once(socket, 'close');
  await line.until(/"QMP".*\r\n/);
  await line.ask('\u0001x', /Terminated\n\r/);
  await closed;
});

test('Telnet agrees on 8 bits, and is taken out of what comes', WITH_QSD, async (t) => {
  const args = ['--chardev', 'socket,id=n,path=$DIR/tel,server=on,wait=off,telnet=on', '--monitor', 'n'];
  await withBoth(t, args, async (daemon) => {
    const socket = createConnection(join(daemon.directory, 'tel'));
    const line = Line.over(socket);
    const commands = [255, 251, 1, 255, 251, 3, 255, 251, 0, 255, 253, 0];
    await line.until(`${String.fromCharCode(...commands)}{"QMP"`);
    await line.until('\r\n');
    socket.write(Uint8Array.of(255, 253, 3, 255, 251, 31));
    await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/);
    socket.destroy();
  });
});

const UPGRADE = [
  ...['GET / HTTP/1.1', 'Host: here', 'Upgrade: websocket', 'Connection: keep-alive, Upgrade'],
  ...['Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Version: 13'],
];

/** A client's frame, whose mask is no mask. */
function frame(kind: number, text: string): string {
  return String.fromCharCode(128 | kind, 128 | text.length, 0, 0, 0, 0) + text;
}

test('a WebSocket carries a monitor in binary frames', { timeout: 60_000 }, async (t) => {
  const args = ['--chardev', 'socket,id=n,path=$DIR/ws,server=on,wait=off,websocket=on', '--monitor', 'n'];
  const daemon = await Peer.start(t, scratch(t), OURS, args);
  const path = join(daemon.directory, 'ws');
  for (const protocol of ['Sec-WebSocket-Protocol: chat, binary\r\n', '']) {
    const socket = createConnection(path);
    const line = Line.over(socket);
    const closed = once(socket, 'close');
    const say = (text: string): boolean => socket.write(Buffer.from(text, 'latin1'));
    say(`${UPGRADE.join('\r\n')}\r\n${protocol}\r\n`);
    const head = await line.until('\r\n\r\n');
    assert.match(head, /^HTTP\/1.1 101 Switching Protocols\r\n/);
    assert.match(head, /\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK\+xOo=\r\n/);
    assert.equal(/\r\nSec-WebSocket-Protocol: binary\r\n/.test(head), protocol !== '');
    await line.until(/"QMP".*\r\n/);
    say(frame(2, COMMAND));
    await line.until('\x82\x10{"return": {}}\r\n');
    say(frame(9, 'ping'));
    await line.until('\x8a\x04ping');
    say(frame(1, 'text'));
    await line.until('\x88\x02\x03\xeb');
    await closed;
  }
  for (const [wrong, status] of [
    [UPGRADE.join('\r\n').replace('GET / ', 'GET /x '), 404],
    [UPGRADE.join('\r\n').replace('Version: 13', 'Version: 12'), 400],
    [`${UPGRADE.join('\r\n')}\r\nSec-WebSocket-Protocol: chat`, 400],
    ['POST / HTTP/1.1\r\nHost: here', 400],
    ['nonsense', 400],
    ['x'.repeat(5000), 431],
  ] as const) {
    const socket = createConnection(path);
    const closed = once(socket, 'close');
    await Line.over(socket).ask(`${wrong}\r\n\r\n`, `HTTP/1.1 ${status} `);
    await closed;
  }
  assert.equal(await daemon.quit(), 0);
});

test(
  'a monitor by TLS greets after the handshake, and whoever fails it is not in the way',
  needs('certtool'),
  async (t) => {
    const directory = scratch(t);
    const [ca, server] = [join(directory, 'ca'), join(directory, 'server')];
    await authority(ca, 'authority');
    await certificate(ca, server, { endpoint: 'server' });
    const args = [
      ...['--object', `tls-creds-x509,id=tls,dir=${server},endpoint=server,verify-peer=off`],
      ...['--chardev', 'socket,id=n,path=$DIR/tls,server=on,wait=off,tls-creds=tls', '--monitor', 'n'],
    ];
    const daemon = await Peer.start(t, directory, OURS, args);
    const plain = createConnection(join(daemon.directory, 'tls'));
    plain.on('error', () => undefined);
    const ended = once(plain, 'close');
    plain.write('no TLS\n');
    plain.resume();
    await ended;
    const socket = connectTls({
      path: join(daemon.directory, 'tls'),
      ca: readFileSync(join(ca, 'ca-cert.pem')),
      servername: 'localhost',
    });
    const line = Line.over(socket);
    await line.until(/"QMP".*\r\n/);
    assert.equal(socket.authorized, true);
    await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/);
    socket.destroy();
    assert.equal(await daemon.quit(), 0);
  },
);

test('datagrams carry a monitor, from and to one address', { timeout: 60_000 }, async (t) => {
  const client = createSocket('udp4').bind(0, '127.0.0.1');
  t.after(() => client.close());
  await once(client, 'listening');
  const stranger = createSocket('udp4');
  t.after(() => stranger.close());
  const free = createSocket('udp4').bind(0, '127.0.0.1');
  await once(free, 'listening');
  const { port } = free.address();
  await new Promise<void>((resolve) => free.close(() => resolve()));
  const remote = `host=127.0.0.1,port=${client.address().port}`;
  const args = ['--chardev', `udp,id=u,${remote},localaddr=127.0.0.1,localport=${port}`, '--monitor', 'u'];
  const line = new Line((text) => client.send(text, port, '127.0.0.1'));
  client.on('message', (bytes) => line.heard(bytes.toString('latin1')));
  const daemon = await Peer.start(t, scratch(t), OURS, args);
  await line.until(/"QMP".*\r\n/);
  stranger.send('{"execute":"quit"}{"execute":"quit"}', port, '127.0.0.1');
  await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/);
  line.say('{"execute":');
  await line.ask('"query-jobs"}', /^\{"return": \[\]\}\r\n/);
  await line.ask('{"execute":"query-qmp-schema"}', /^\{"return": \[.*\]\}\r\n/);
  assert.equal(await daemon.quit(), 0);
});

test('pipes carry a monitor, and their ends come and go', needs('mkfifo'), async (t) => {
  const directory = scratch(t);
  const path = join(directory, 'pipe');
  await peer('mkfifo', `${path}.in`, `${path}.out`);
  const daemon = await Peer.start(t, directory, OURS, ['--chardev', `pipe,id=p,path=${path}`, '--monitor', 'p']);
  for (const [text, answer] of [
    [COMMAND, /"QMP".*\r\n\{"return": \{\}\}\r\n/],
    [QUERY, /^\{"return": \[\]\}\r\n/],
  ] as const) {
    writeFileSync(`${path}.in`, text);
    const reader = fifo(`${path}.out`);
    await reader.line.until(answer);
    reader.close();
  }
  assert.equal(await daemon.quit(), 0);
});

/** Reads a pipe by its name. */
function fifo(path: string): { readonly line: Line; close(): void } {
  const fd = openSync(path, 'r+');
  const line = new Line(() => undefined);
  const input = new Socket({ fd, readable: true, writable: false });
  input.on('data', (bytes: Uint8Array) => line.heard(Buffer.from(bytes).toString('latin1')));
  return { line, close: () => input.destroy() };
}

test('what goes out is written down where a log is wanted', WITH_QSD, async (t) => {
  const args = [
    '--chardev',
    'socket,id=n,path=$DIR/s,server=on,wait=off,logfile=$DIR/log,logappend=on',
    '--monitor',
    'n',
  ];
  await withBoth(t, args, async ({ directory }) => {
    const socket = createConnection(join(directory, 's'));
    const line = Line.over(socket);
    const told = (await line.until(/"QMP".*\r\n/)) + (await line.ask(COMMAND, /^\{"return": \{\}\}\r\n/));
    const log = (): string => readFileSync(join(directory, 'log'), 'latin1');
    // It is written down once it has gone out.
    while (log().length < told.length) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(log(), told);
    socket.destroy();
  });
});

test('a device that connects comes back when it is told to', WITH_QSD, async (t) => {
  for (const command of [THEIRS, OURS]) {
    // Each has a server of its own: it may come once more before it ends.
    const server = createServer().listen(0, '127.0.0.1');
    t.after(() => server.close());
    server.on('connection', (socket) => t.after(() => socket.destroy()));
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const connections = on(server, 'connection');
    const args = ['--chardev', `socket,id=n,host=127.0.0.1,port=${port},reconnect=1`, '--monitor', 'n'];
    const daemon = await Peer.start(t, scratch(t), command, args);
    for (let time = 0; time < 2; time++) {
      const [socket] = (await connections.next()).value as [Socket];
      await Line.over(socket).until(/"QMP".*\r\n/);
      assert.match(await filenameOf(daemon, 'n'), new RegExp(`^tcp:127\\.0\\.0\\.1:\\d+ <-> 127\\.0\\.0\\.1:${port}$`));
      socket.destroy();
    }
    assert.equal(await daemon.quit(), 0, command.at(-1));
  }
});

for (const tight of [true, false]) {
  test(`a socket has a name in the abstract namespace, ${tight ? 'as long as it is' : 'filled up'}: both sides of it`, {
    ...NATIVE,
    skip: WITH_QSD.skip || NATIVE.skip,
  }, async (t) => {
    const [here, there] = ['a', 'b'].map((name) => join(scratch(t), name)) as [string, string];
    const name = (path: string) => unixPath({ path, abstract: true, tight });
    const server = createServer().listen({ fd: abstractSocket(name(there), 'server')! });
    t.after(() => server.close());
    const how = `abstract=on,tight=${tight ? 'on' : 'off'}`;
    const args = [
      ...['--chardev', `socket,id=a,path=${here},${how},server=on,wait=off`, '--monitor', 'a'],
      ...['--chardev', `socket,id=b,path=${there},${how}`, '--monitor', 'b'],
    ];
    const came = on(server, 'connection');
    await withBoth(t, args, async () => {
      const fd = abstractSocket(name(here), 'client')!;
      assert.ok(fd >= 0, String(fd));
      const { value } = await came.next();
      for (const socket of [new Socket({ fd, readable: true, writable: true }), value[0] as Socket]) {
        const line = Line.over(socket);
        await line.until(/\{"QMP": .*\r\n/);
        await line.ask(COMMAND, '{"return": {}}');
        socket.destroy();
      }
    });
  });
}
