/** Looking at the beginning of an image that an NBD server has. */
import type { Bytes, Offset } from '../base/units.ts';
import type { Disk } from './disk.ts';
import { Head } from './image-head.ts';
import { open } from './open.ts';

export class RemoteHead extends Head {
  readonly #disk: Disk;

  private constructor(uri: string, disk: Disk) {
    super(uri, disk.size);
    this.#disk = disk;
  }

  /** Read-only. BlockError as the driver has it. */
  static async open(uri: string): Promise<RemoteHead> {
    return new RemoteHead(uri, await open(uri, { format: 'raw', readOnly: true }));
  }

  async read(at: Offset, length: Bytes): Promise<Uint8Array> {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, this.length - at)));
    const { bytesRead } = await this.#disk.read(bytes, 0, bytes.length, at);
    return bytes.subarray(0, bytesRead);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#disk.close();
  }
}
