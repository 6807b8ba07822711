/**
 * Clusters that only the driver can read or write: compressed and encrypted ones. Also the plain ones beside them,
 * since what a range is may change between `map` and here.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, MiB, type Offset, SECTOR } from '../../base/units.ts';
import { Mapping, type MaybePromise } from '../../block/driver.ts';
import { decodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { Crypt } from '../../proto/qcow2/constants.ts';
import type { Wanted } from './compressed.ts';
import type { Image } from './image.ts';
import { Lookup } from './lookup.ts';
import { kernelBytes } from './metadata-io.ts';
import { EntryPlace, findEntry } from './tables.ts';
import { WorkMemory } from './work-memory.ts';
import type { Writer } from './write.ts';

/** One read or write through the cipher at a time is as long as this. */
const PIECE = 256 * 1024;
/** Compressed clusters that are worked on together by one request. */
const PACKED_BYTES = MiB;

export class OpaqueIo {
  readonly #image: Image;
  readonly #writer: Writer;
  readonly #lookup: Lookup;
  readonly #memory: WorkMemory;
  /** Compressed clusters of one request. */
  readonly #together: number;

  constructor(image: Image, writer: Writer) {
    this.#image = image;
    this.#writer = writer;
    this.#lookup = new Lookup(image, false);
    this.#memory = new WorkMemory(image.aio);
    this.#together = Math.max(1, Math.floor(PACKED_BYTES / image.geometry.clusterSize));
  }

  /** See NodeIo.preadv. */
  read(at: Offset, iov: Iov): Promise<void> {
    return this.#using(this.#read(at, iov));
  }

  /** See NodeIo.pwritev: of an encrypted image. */
  async write(at: Offset, iov: Iov): Promise<void> {
    for (let done = 0; done < iov.length; ) {
      const length = Math.min(PIECE, iov.length - done);
      done += await this.#writeSome(at + done, iov.slice(done, length));
    }
  }

  /** See NodeIo.writeCompressed. What does not get smaller is stored as it is. */
  async writeCompressed(at: Offset, iov: Iov): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    if (image.dataFile !== null || image.cipher !== null) {
      const why = image.cipher === null ? 'its data is in an external file' : 'it is encrypted';
      throw new BlockError(Errno.ENOTSUP, `Could not write compressed clusters to the image: ${why}`);
    }
    const end = at + iov.length;
    if (at % clusterSize !== 0 || (end % clusterSize !== 0 && end !== image.size)) {
      const what = `clusters of ${clusterSize} bytes, not ${iov.length} bytes at ${at}`;
      throw new BlockError(Errno.EINVAL, `Could not write compressed clusters to the image: it has ${what}`);
    }
    const most = this.#together * clusterSize;
    for (let done = 0; done < iov.length; done += most) {
      await this.#writeClusters(at + done, iov.slice(done, Math.min(most, iov.length - done)));
    }
  }

  /** While `work` goes on, what it has found in the file stays there. */
  #using(work: Promise<void>): Promise<void> {
    const { opaqueWork } = this.#image;
    opaqueWork.add(work);
    const end = (): void => {
      opaqueWork.delete(work);
    };
    work.then(end, end);
    return work;
  }

  async #read(at: Offset, iov: Iov): Promise<void> {
    const { clusterSize } = this.#image.geometry;
    const mapping = new Mapping();
    let packed: Wanted[] = [];
    for (let done = 0; done < iov.length; ) {
      const pending = this.#lookup.map(at + done, Math.min(PIECE, iov.length - done), 'read', mapping);
      if (pending !== undefined) {
        await pending;
        continue;
      }
      let { length } = mapping;
      if (mapping.kind === 'opaque') {
        length = Math.min(length, clusterSize - ((at + done) % clusterSize));
        packed.push(this.#wanted(at + done, iov.slice(done, length)));
      } else await this.#readPart(at + done, iov.slice(done, length), mapping);
      done += length;
      if (packed.length < this.#together) continue;
      await this.#image.compressed.read(packed);
      packed = [];
    }
    if (packed.length > 0) await this.#image.compressed.read(packed);
  }

  /** What `mapping` says it is, just now. */
  #readPart(at: Offset, iov: Iov, mapping: Mapping): MaybePromise<void> {
    const { backing, cipher, data } = this.#image;
    switch (mapping.kind) {
      case 'data':
        return cipher === null ? data.read(mapping.at, iov) : this.#readEncrypted(at, mapping.at, iov);
      case 'absent':
        return backing === null ? iov.fill(0) : backing.read(at, iov);
      default:
        return iov.fill(0);
    }
  }

  /** Its entry is in the cache: it was found there just now. */
  #wanted(at: Offset, iov: Iov): Wanted {
    const image = this.#image;
    const { position } = findEntry(image, Math.floor(at / image.geometry.clusterSize), new EntryPlace());
    const [high, low] = [image.l2.view.getUint32(position), image.l2.view.getUint32(position + 4)];
    return {
      ...decodeCompressed(high, low, image.header.clusterBits),
      ...{ inside: at % image.geometry.clusterSize, iov },
    };
  }

  /** Decrypted where it has been read to, if that is one run; through memory of our own otherwise. */
  async #readEncrypted(at: Offset, host: Offset, iov: Iov): Promise<void> {
    if (iov.count > 1) {
      await this.#memory.use(iov.length, async (work) => {
        await this.#readEncrypted(at, host, work);
        iov.copyFrom(work.run(0));
      });
      return;
    }
    await this.#image.data.point('read_aio');
    await this.#image.data.read(host, iov);
    this.#image.cipher!.decrypt(iov.run(0), this.#sector(at, host));
  }

  /** LUKS counts sectors of the file, the old AES ones of the disk. */
  #sector(at: Offset, host: Offset): number {
    return (this.#image.header.cryptMethod === Crypt.LUKS ? host : at) / SECTOR;
  }

  /** Returns how much was written. */
  async #writeSome(at: Offset, iov: Iov): Promise<Bytes> {
    const mapping = new Mapping();
    for (;;) {
      const pending = this.#lookup.map(at, iov.length, 'write', mapping);
      if (pending === undefined) break;
      await pending;
    }
    if (mapping.kind === 'data') {
      const { length } = mapping;
      await this.#using(this.#writeEncrypted(at, mapping.at, iov.slice(0, length)));
      return length;
    }
    await using room = await this.#writer.reserve(at, iov.length);
    await this.#writeEncrypted(at, room.at, iov.slice(0, room.length), room.head, room.tail);
    await room.commit();
    return room.length;
  }

  /** Encrypts and writes `iov` with its margins, which have been read before. */
  async #writeEncrypted(at: Offset, host: Offset, iov: Iov, head = 0, tail = 0): Promise<void> {
    await this.#memory.use(head + iov.length + tail, async (work) => {
      // Each of them is one run: no more memory is asked for, see WorkMemory.
      if (head > 0) await this.#read(at - head, work.slice(0, head));
      if (tail > 0) await this.#read(at + iov.length, work.slice(head + iov.length, tail));
      const bytes = work.run(0);
      iov.copyTo(bytes.subarray(head, head + iov.length));
      this.#image.cipher!.encrypt(bytes, this.#sector(at - head, host - head));
      await this.#image.data.point('write_aio');
      await this.#image.data.write(host - head, work);
    });
  }

  /** Compresses them side by side, and stores them in their order. */
  async #writeClusters(at: Offset, iov: Iov): Promise<void> {
    const { clusterSize } = this.#image.geometry;
    const parts: Iov[] = [];
    for (let done = 0; done < iov.length; done += clusterSize) {
      parts.push(iov.slice(done, Math.min(clusterSize, iov.length - done)));
    }
    const packed = parts.map((part) => this.#image.compressed.pack(this.#whole(part)));
    // None of them is left behind when one before it fails.
    const settled = Promise.allSettled(packed);
    try {
      for (const [i, part] of parts.entries()) await this.#storeCluster(at + i * clusterSize, part, await packed[i]);
    } finally {
      await settled;
    }
  }

  /** The bytes of a cluster, with zeroes behind the end of the disk. */
  #whole(iov: Iov): Uint8Array {
    const { clusterSize } = this.#image.geometry;
    if (iov.count === 1 && iov.length === clusterSize) return iov.run(0);
    const plain = kernelBytes(clusterSize);
    iov.copyTo(plain);
    return plain;
  }

  async #storeCluster(at: Offset, iov: Iov, packed: Uint8Array | undefined): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    if (packed === undefined) return this.#storePlain(at, iov);
    const cluster = at / clusterSize;
    const { allocation, host } = await this.#writer.reservePacked(cluster, packed.length);
    let linked = false;
    try {
      await image.file.point('write_compressed');
      await image.io.write(host, packed);
      await this.#writer.commitPacked(cluster, host, packed.length);
      linked = true;
    } finally {
      if (!linked) this.#writer.freePacked(host, packed.length);
      image.allocations.end(allocation);
      image.compressed.giveBack(packed);
    }
  }

  /** As a whole cluster, with zeroes behind the end of the disk. */
  async #storePlain(at: Offset, iov: Iov): Promise<void> {
    const image = this.#image;
    for (let done = 0; done < iov.length; ) {
      await using room = await this.#writer.reserve(at + done, iov.length - done);
      const whole = new Uint8Array(room.length + room.tail);
      iov.copyTo(whole.subarray(0, room.length), done);
      const bytes = kernelBytes(whole.length);
      bytes.set(whole);
      await room.child.write(room.at, Iov.of(image.aio.backend.memory(bytes)));
      await room.commit();
      done += room.length;
    }
  }
}
