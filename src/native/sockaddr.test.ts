import assert from 'node:assert/strict';
import { isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { test } from 'node:test';
import fc from 'fast-check';
import { Errno } from '../base/errors.ts';
import { decodeAddress, encodeAddress, type NativeAddress, SOCKADDR_MAX } from './sockaddr.ts';

function roundTrip(address: NativeAddress): NativeAddress | undefined {
  const bytes = new Uint8Array(SOCKADDR_MAX).fill(0xee);
  return decodeAddress(bytes, encodeAddress(address, bytes));
}

const encode = (address: NativeAddress): number => encodeAddress(address, new Uint8Array(SOCKADDR_MAX));

test('unix paths, abstract names and IPv4 addresses come back as they went', () => {
  for (const path of ['/run/x.sock', 'relative', '/tmp/ünï', '\0abstract', '\0with\0nul', `\0${'n'.repeat(107)}`]) {
    assert.deepEqual(roundTrip({ kind: 'unix', path }), { kind: 'unix', path });
  }
  fc.assert(
    fc.property(fc.ipV4(), fc.integer({ min: 0, max: 65535 }), (host, port) => {
      assert.deepEqual(roundTrip({ kind: 'inet', host, port }), { kind: 'inet', host, port });
    }),
  );
});

test('IPv6 addresses come back in the canonical form of the URL standard', () => {
  fc.assert(
    fc.property(fc.ipV6(), (host) => {
      fc.pre(isIPv6(host));
      const back = roundTrip({ kind: 'inet', host, port: 1 });
      assert.ok(back?.kind === 'inet');
      const canonical = (text: string) => new URL(`http://[${text}]/`).hostname;
      assert.equal(canonical(back.host), canonical(host));
      if (!back.host.includes('.')) assert.equal(`[${back.host}]`, canonical(host));
    }),
    { numRuns: 500 },
  );
});

test('IPv6 text is as RFC 5952 has it', () => {
  const text = (host: string) => {
    const back = roundTrip({ kind: 'inet', host, port: 1 });
    return back?.kind === 'inet' ? back.host : undefined;
  };
  assert.equal(text('::'), '::');
  assert.equal(text('0:0:0:0:0:0:0:1'), '::1');
  assert.equal(text('2001:DB8:0:0:1:0:0:1'), '2001:db8::1:0:0:1');
  assert.equal(text('2001:db8:0:1:1:1:1:1'), '2001:db8:0:1:1:1:1:1');
  assert.equal(text('fe80::'), 'fe80::');
  assert.equal(text('::ffff:192.0.2.1'), '::ffff:192.0.2.1');
  assert.equal(text('fe80::1%7'), 'fe80::1%7');
});

test('an interface name is a scope', () => {
  const named = Object.entries(networkInterfaces()).find(([, list]) => list?.some((e) => e.family === 'IPv6'));
  const entry = named?.[1]?.find((e) => e.family === 'IPv6');
  if (named && entry?.family === 'IPv6') {
    const suffix = entry.scopeid === 0 ? '' : `%${entry.scopeid}`;
    const back = roundTrip({ kind: 'inet', host: `fe80::1%${named[0]}`, port: 1 });
    assert.deepEqual(back, { kind: 'inet', host: `fe80::1${suffix}`, port: 1 });
  }
  assert.equal(encode({ kind: 'inet', host: 'fe80::1%nosuchinterface', port: 1 }), -Errno.EINVAL);
});

test('what does not fit or is no address is refused', () => {
  assert.equal(encode({ kind: 'unix', path: 'p'.repeat(107) }), 2 + 108);
  assert.equal(encode({ kind: 'unix', path: 'p'.repeat(108) }), -Errno.ENAMETOOLONG);
  assert.equal(encode({ kind: 'unix', path: 'ü'.repeat(54) }), -Errno.ENAMETOOLONG);
  assert.equal(encode({ kind: 'unix', path: `\0${'p'.repeat(108)}` }), -Errno.ENAMETOOLONG);
  assert.equal(encode({ kind: 'unix', path: 'a\0b' }), -Errno.EINVAL);
  assert.equal(encode({ kind: 'unix', path: '' }), -Errno.EINVAL);
  for (const host of ['localhost', '', '1.2.3', '256.1.1.1', ':::', '1::2::3']) {
    assert.equal(encode({ kind: 'inet', host, port: 1 }), -Errno.EINVAL);
  }
  for (const port of [-1, 65536, 1.5, Number.NaN]) {
    assert.equal(encode({ kind: 'inet', host: '::1', port }), -Errno.EINVAL);
  }
});

test('an address of another family is undefined, an empty one an unnamed unix socket', () => {
  assert.equal(decodeAddress(new Uint8Array([16, 0, ...new Uint8Array(126)]), 12), undefined);
  assert.deepEqual(decodeAddress(new Uint8Array(SOCKADDR_MAX), 0), { kind: 'unix', path: '' });
  assert.deepEqual(decodeAddress(new Uint8Array([1, 0, ...new Uint8Array(126)]), 2), { kind: 'unix', path: '' });
});
