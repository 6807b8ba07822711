import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { native } from './lib.ts';
import { isThreadAlive, kernelThreadId } from './thread.ts';

const here = import.meta.url;
const extension = here.slice(here.lastIndexOf('.'));

test('a thread is alive until it has ended', { skip: !native() && 'no native layer' }, async () => {
  assert.equal(kernelThreadId(), process.pid, 'the first thread has the number of the process');
  assert.ok(isThreadAlive(process.pid));
  const source = `
    const { parentPort } = require('node:worker_threads');
    import(${JSON.stringify(new URL(`./thread${extension}`, here).href)}).then(({ kernelThreadId }) => {
      parentPort.postMessage(kernelThreadId());
      parentPort.once('message', () => parentPort.close());
    });`;
  const worker = new Worker(source, { eval: true });
  const [id] = (await once(worker, 'message')) as [number];
  assert.notEqual(id, process.pid);
  assert.ok(isThreadAlive(id));
  worker.postMessage('end');
  await once(worker, 'exit');
  assert.equal(isThreadAlive(id), false);
});
