/**
 * Bitmaps of an export for a server in another thread than their nodes': the server there asks the one that has them,
 * through a port, where a range changes. A question is a message, since few clients ask for bitmaps, and not often.
 */
import type { MessagePort } from 'node:worker_threads';
import { Gate, spawn } from '../../aio/op.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { Offset } from '../../base/units.ts';
import type { ExportBitmaps } from './bitmaps.ts';

interface Question {
  readonly id: number;
  readonly index: number;
  readonly at: Offset;
  readonly end: Offset;
  readonly max: number;
}

interface Answer {
  readonly id: number;
  readonly edges: readonly Offset[];
}

/** What another thread answers through `port`, which is this one's. */
export class RemoteBitmaps implements ExportBitmaps {
  readonly names: readonly string[];
  readonly #port: MessagePort;
  readonly #asked = new Map<number, Gate<readonly Offset[]>>();
  #ids = 0;
  #gone = false;

  constructor(port: MessagePort, names: readonly string[]) {
    this.names = names;
    this.#port = port;
    port.on('message', ({ id, edges }: Answer) => {
      this.#asked.get(id)?.open(edges);
      this.#asked.delete(id);
    });
    port.on('close', () => this.#closed());
    port.unref();
  }

  #closed(): void {
    this.#gone = true;
    for (const gate of this.#asked.values()) gate.fail(gone());
    this.#asked.clear();
  }

  async edges(index: number, at: Offset, end: Offset, max: number): Promise<readonly Offset[]> {
    if (this.#gone) throw gone();
    const id = ++this.#ids;
    const gate = new Gate<readonly Offset[]>();
    this.#asked.set(id, gate);
    this.#port.postMessage({ id, index, at, end, max } satisfies Question);
    return gate.promise;
  }

  release(): void {
    this.#closed();
    this.#port.close();
  }
}

function gone(): BlockError {
  return new BlockError(Errno.EIO, 'Could not read a bitmap: the thread that has it shows it no more');
}

/** `bitmaps`, which those at the other end of `ports` may ask for until they are released. */
export function answering(bitmaps: ExportBitmaps, ports: readonly MessagePort[]): ExportBitmaps {
  for (const port of ports) {
    port.on('message', (question: Question) => spawn(answer(bitmaps, port, question)));
    port.unref();
  }
  return {
    names: bitmaps.names,
    edges: (index, at, end, max) => bitmaps.edges(index, at, end, max),
    release() {
      for (const port of ports) port.close();
      bitmaps.release();
    },
  };
}

async function answer(bitmaps: ExportBitmaps, port: MessagePort, question: Question): Promise<void> {
  const { id, index, at, end, max } = question;
  port.postMessage({ id, edges: await bitmaps.edges(index, at, end, max) } satisfies Answer);
}
