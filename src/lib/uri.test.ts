import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { nbdUri, parseNbdUri } from './uri.ts';

test('a URI gives back the export name and the address', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ minLength: 1 }), (name, path) => {
      const url = new URL(nbdUri({ kind: 'unix', path: `/${path}` }, name));
      assert.equal(url.protocol, 'nbd+unix:');
      assert.equal(decodeURIComponent(url.pathname.slice(1)), name);
      assert.equal(decodeURIComponent(url.search.slice('?socket='.length)), `/${path}`);
    }),
  );
});

test('hosts are written as clients reach them', () => {
  const uri = (host: string): string => nbdUri({ kind: 'inet', host, port: 10809 }, 'a');
  assert.equal(uri('10.0.0.1'), 'nbd://10.0.0.1:10809/a');
  assert.equal(uri('::1'), 'nbd://[::1]:10809/a');
  assert.equal(uri('0.0.0.0'), 'nbd://127.0.0.1:10809/a');
  assert.equal(uri('::'), 'nbd://[::1]:10809/a');
});

test('what is written as a URI is read back', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ minLength: 1 }), (name, text) => {
      const path = `/${text.replaceAll('\0', '')}`;
      const location = parseNbdUri(nbdUri({ kind: 'unix', path }, name));
      assert.deepEqual(location, { server: { type: 'unix', path }, export: name });
    }),
  );
  const read = (uri: string): unknown => parseNbdUri(uri);
  const inet = (host: string, port: string, name: string): unknown => ({
    server: { type: 'inet', host, port },
    export: name,
  });
  assert.deepEqual(read('nbd://10.0.0.1:10810/a%20b'), inet('10.0.0.1', '10810', 'a b'));
  assert.deepEqual(read('NBD://[::1]/a/b'), inet('::1', '10809', 'a/b'));
  assert.deepEqual(read('nbd://host'), inet('host', '10809', ''));
  assert.deepEqual(read('nbd://host:/'), inet('host', '10809', ''));
  assert.deepEqual(read('nbd:////x'), inet('localhost', '10809', '/x'));
  assert.deepEqual(read('nbd+unix:///?socket=a%26b'), { server: { type: 'unix', path: 'a&b' }, export: '' });
  assert.deepEqual(read('nbd+unix://?socket=%00x'), {
    server: { type: 'unix', path: 'x', abstract: true },
    export: '',
  });
});

test('an nbds URI says what TLS is to be like', () => {
  const tls = (query: string): unknown => {
    const { server, export: name, ...rest } = parseNbdUri(`nbds://host/x?${query}`);
    assert.equal(server.type, 'inet');
    assert.equal(name, 'x');
    return rest;
  };
  assert.deepEqual(tls(''), { 'tls-creds': { type: 'x509' } });
  assert.deepEqual(tls('tls-certificates=/a%20b&tls-hostname=h'), {
    'tls-creds': { type: 'x509', dir: '/a b' },
    'tls-hostname': 'h',
  });
  assert.deepEqual(tls('tls-verify-peer=0'), { 'tls-creds': { type: 'x509', 'verify-peer': false } });
  assert.deepEqual(tls('tls-psk-file=k&tls-username=u'), { 'tls-creds': { type: 'psk', file: 'k', username: 'u' } });
  assert.deepEqual(tls('tls-type=anon'), { 'tls-creds': { type: 'anon' } });
  assert.deepEqual(parseNbdUri('nbds+unix://al%20ice@/?socket=s&tls-psk-file=k'), {
    server: { type: 'unix', path: 's' },
    export: '',
    'tls-creds': { type: 'psk', file: 'k', username: 'al ice' },
  });
  assert.equal(nbdUri({ kind: 'unix', path: '/s' }, 'x', true), 'nbds+unix:///x?socket=/s');
  assert.equal(nbdUri({ kind: 'inet', host: '::', port: 1 }, 'x', true), 'nbds://[::1]:1/x');
});

test('2025-14946 a URI that cannot be is refused by its part that is wrong', () => {
  const bad = (uri: string, message: RegExp, code = 'EINVAL'): void => {
    assert.throws(() => parseNbdUri(uri), { code, message });
  };
  bad('nbd://host/x?tls-certificates=d', /'tls-certificates' is for nbds/);
  bad('nbds://host/x?tls-priority=x', /unknown parameter 'tls-priority'/);
  bad('nbds://host/x?tls-verify-peer=2', /'tls-verify-peer' is '2'/);
  bad('nbds://host/x?tls-type=x', /type is 'x'/);
  bad('nbds://host/x?tls-type=psk&tls-certificates=d&tls-type=psk', /given twice/);
  bad('nbds://host/x?tls-certificates=d&tls-psk-file=k&tls-type=x509', /file is not a field of type x509/);
  bad('nbds+vsock://1/x', /vsock/, 'ENOTSUP');
  bad('nbd+vsock://1/x', /vsock/, 'ENOTSUP');
  bad('nbd+unix:///x', /'\?socket=PATH' is missing/);
  bad('nbd+unix://host/x?socket=s', /names a host/);
  bad('nbd+unix:///x?socket=a&socket=b', /given twice/);
  bad('nbd://host/x?socket=s', /'socket' is for nbd\+unix/);
  bad('nbd://host/x?colour=red', /unknown parameter 'colour'/);
  bad('nbd://user@host/x', /not HOST:PORT/);
  bad('nbd://a:b:c/x', /not HOST:PORT/);
  bad('nbd://host/%ff', /percent-encoded/);
  bad('nbd://host/x#y', /no NBD URI/);
});
