import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { nbdUri } from './uri.ts';

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
