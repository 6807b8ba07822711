/** Reading through a node of the driver, in the test's own thread. */
import type { TestContext } from 'node:test';
import { BlockError } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { openImage } from '../../lib/open-image.ts';
import type { HttpOptions } from './settings.ts';

/** Behind the first 256 KiB, which a node keeps from its first request. */
export const BEHIND_HEAD = 256 * 1024;

export interface Opened {
  readonly blk: BlockBackend;
  read(at: number, length: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Closed with the test, if it does not close it itself. */
export async function openUrl(
  t: Pick<TestContext, 'after'>,
  url: string,
  options: Partial<HttpOptions> = {},
): Promise<Opened> {
  const driver = /^(https|ftps?)(?=:)/.exec(url)?.[0] ?? 'http';
  const { blk, close } = await openImage({ driver, 'read-only': true, url, retries: 0, ...options });
  let closing: Promise<void> | undefined;
  const end = (): Promise<void> => {
    closing ??= close();
    return closing;
  };
  t.after(end);
  return {
    blk,
    close: end,
    async read(at, length) {
      const bytes = new Uint8Array(new SharedArrayBuffer(length)).fill(0xa5);
      await blk.read(at, Iov.of(blk.context.backend.memory(bytes)));
      return bytes;
    },
  };
}

/** The error that it must fail with. */
export async function failure(attempt: Promise<unknown>): Promise<BlockError> {
  try {
    await attempt;
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error('it succeeded, and must not');
}
