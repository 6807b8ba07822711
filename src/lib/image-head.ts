/** Looking at the beginning of an image, without opening a node: no lock, nothing written, no other file. */
import { constants, type Stats } from 'node:fs';
import { BlockError, Errno, errnoOf, errnoText } from '../base/errors.ts';
import type { Bytes, Offset } from '../base/units.ts';
import { deviceSize } from '../native/file.ts';
import { MAGIC_BYTES, magicOf } from '../proto/magic.ts';
import { clusterSizeOf, parseHeader, type Qcow2Header } from '../proto/qcow2/header.ts';
import { close, fstat, open, read } from './file-calls.ts';

export function kindOf(stats: Stats): 'file' | 'block' | 'other' {
  return stats.isFile() ? 'file' : stats.isBlockDevice() ? 'block' : 'other';
}

/** An image that is open for being looked at, wherever it is. */
export abstract class Head implements AsyncDisposable {
  /** What it is called in messages. */
  abstract readonly path: string;
  /** Bytes; of a device its capacity. */
  abstract readonly length: Bytes;
  /** Bytes that it takes on the disk; null where that cannot be known. */
  abstract readonly allocated: Bytes | null;

  /** Fewer bytes where the file ends. */
  abstract read(at: Offset, length: Bytes): Promise<Uint8Array>;
  abstract [Symbol.asyncDispose](): Promise<void>;

  /** The format that the first bytes are of; undefined where they are of none that is known. */
  async magic(): Promise<string | undefined> {
    return magicOf(await this.read(0, MAGIC_BYTES));
  }

  /** The header of a qcow2 image. Errors as parseHeader has them, with the file's name. */
  async qcow2Header(): Promise<Qcow2Header> {
    try {
      const clusterSize = clusterSizeOf(await this.read(0, MAGIC_BYTES));
      return parseHeader(await this.read(0, clusterSize), this.length);
    } catch (error) {
      throw ofImage(error, this.path);
    }
  }
}

/** A file that is open for being looked at. */
export class ImageHead extends Head {
  readonly path: string;
  readonly kind: 'file' | 'block' | 'other';
  readonly length: Bytes;
  readonly allocated: Bytes;
  readonly dev: number;
  readonly ino: number;
  readonly fd: number;

  private constructor(
    path: string,
    fd: number,
    about: Pick<ImageHead, 'kind' | 'length' | 'allocated' | 'dev' | 'ino'>,
  ) {
    super();
    this.path = path;
    this.fd = fd;
    this.kind = about.kind;
    this.length = about.length;
    this.allocated = about.allocated;
    this.dev = about.dev;
    this.ino = about.ino;
  }

  /** BlockError as the system has it. `follow`: the path may be a symbolic link. */
  static async open(path: string, follow = true): Promise<ImageHead> {
    // Without O_NONBLOCK a FIFO would keep us waiting for its other end.
    const flags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0) | (follow ? 0 : (constants.O_NOFOLLOW ?? 0));
    let fd: number | undefined;
    try {
      fd = await open(path, flags);
      const stats = await fstat(fd);
      const block = stats.isBlockDevice();
      return new ImageHead(path, fd, {
        kind: kindOf(stats),
        length: block ? deviceLength(path, fd) : stats.size,
        allocated: stats.blocks * 512,
        dev: stats.dev,
        ino: stats.ino,
      });
    } catch (error) {
      if (fd !== undefined) await close(fd);
      throw openError(path, error);
    }
  }

  async read(at: Offset, length: Bytes): Promise<Uint8Array> {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, this.length - at)));
    let done = 0;
    try {
      while (done < bytes.length) {
        const { bytesRead } = await read(this.fd, bytes, done, bytes.length - done, at + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
    } catch (error) {
      const errno = errnoOf(error);
      throw new BlockError(errno, `Could not read '${this.path}': ${errnoText(errno)}`, { cause: error });
    }
    return bytes.subarray(0, done);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await close(this.fd);
  }
}

/** A driver knows an image as "the image"; whoever opened it knows its name. */
export function ofImage(error: unknown, path: string): unknown {
  if (!(error instanceof BlockError) || !/^Could not \w+ the image:/.test(error.message)) return error;
  const message = error.message.replace('the image:', () => `'${path}':`);
  return new BlockError(error.errno, message, { where: { ...error.where, path }, cause: error.cause });
}

export function openError(path: string, error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const errno = errnoOf(error);
  return new BlockError(errno, `Could not open '${path}': ${errnoText(errno)}`, {
    where: { path, op: 'open' },
    cause: error,
  });
}

/** stat(2) says 0 of a device. */
function deviceLength(path: string, fd: number): Bytes {
  const length = deviceSize(fd);
  if (length < 0) throw new BlockError(length, `Could not get the size of '${path}': ${errnoText(length)}`);
  return length;
}

/** EINVAL for what is neither a file nor a block device: nothing of it has been read. */
export function assertImageFile(head: ImageHead): void {
  if (head.kind === 'other') {
    throw new BlockError(Errno.EINVAL, `Could not open '${head.path}': neither a regular file nor a block device`);
  }
}
