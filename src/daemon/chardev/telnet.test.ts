import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TelnetFraming } from './telnet.ts';

test('commands of Telnet are taken out, wherever they are cut', () => {
  const said = [
    ...[65, 255, 253, 3, 66, 255, 251, 31, 67, 255, 250, 31, 0, 80, 255, 255, 0, 24, 255, 240, 68],
    ...[255, 255, 69, 255, 243, 70, 255, 246, 71],
  ];
  for (const step of [1, 2, 3, said.length]) {
    const framing = new TelnetFraming();
    const heard: number[] = [];
    for (let at = 0; at < said.length; at += step) {
      heard.push(...framing.decode(Uint8Array.from(said.slice(at, at + step))));
    }
    assert.deepEqual(heard, [65, 66, 67, 68, 255, 69, 70, 71], `in pieces of ${step}`);
  }
});
