/** For tests: homes, handles and client threads. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { IOThread } from '../aio/iothread.ts';
import type { BackendChoice } from '../aio/select.ts';
import { descriptorOf, newOffer } from './descriptor.ts';
import { BlkHandle } from './handle.ts';
import type { BlkDescriptor, BlkIdentity } from './layout.ts';
import { BlkOp } from './op.ts';
import type { ClientReport, ClientTask } from './testing-client.ts';
import type { HomeReport } from './testing-home.ts';

const extension = import.meta.url.slice(import.meta.url.lastIndexOf('.'));
const setup = new URL(`./testing-home${extension}`, import.meta.url);
const client = new URL(`./testing-client${extension}`, import.meta.url);

export function startHome(aio: BackendChoice, name = 'io0'): Promise<IOThread> {
  return IOThread.start({ name, aio, setup });
}

export async function share(home: IOThread, which: 'disk' | 'null' = 'disk'): Promise<BlkDescriptor> {
  const { offer, port } = newOffer();
  const identity = await home.call<BlkIdentity>('share', { offer, which }, [offer.port]);
  return descriptorOf(identity, offer.words, port);
}

export async function attach(home: IOThread, which: 'disk' | 'null' = 'disk'): Promise<BlkHandle> {
  return BlkHandle.attach(await share(home, which));
}

export function report(home: IOThread): Promise<HomeReport> {
  return home.call<HomeReport>('report');
}

/** A worker with its task under way. */
export function begin(task: ClientTask): Worker {
  return new Worker(client, { workerData: task, transferList: [task.descriptor.port] });
}

/** What the first message of a worker says. */
export async function work(task: ClientTask): Promise<ClientReport> {
  const [answer] = (await once(begin(task), 'message')) as [ClientReport];
  return answer;
}

/** Asks again and again, for 10 s at most. */
export async function until(ready: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!(await ready())) {
    assert.ok(performance.now() < end, 'nothing in 10 s');
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Notes how it ended, each time. */
export class CountedOp extends BlkOp {
  readonly results: number[] = [];
  next: (() => void) | undefined;

  done(error: number): void {
    this.results.push(error);
    this.next?.();
  }
}
