/**
 * Clusters that only the driver can read or write: compressed and encrypted ones. Also the plain ones beside them, since
 * what a range is may change between `map` and here.
 */
import { BlockError, Errno } from '../../base/errors.ts';
import { Iov } from '../../base/memory.ts';
import { type Bytes, type Offset, SECTOR } from '../../base/units.ts';
import { Mapping } from '../../block/driver.ts';
import { decodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { Crypt, EntryHigh } from '../../proto/qcow2/constants.ts';
import { Kind } from './entries.ts';
import type { Image } from './image.ts';
import { kernelBytes } from './metadata-io.ts';
import { MISS } from './table-cache.ts';
import { EntryPlace, findEntry, hostAt, kindAt } from './tables.ts';
import type { Writer } from './write.ts';

/** One read or write through the cipher at a time is as long as this. */
const PIECE = 256 * 1024;

export class OpaqueIo {
  readonly #image: Image;
  readonly #writer: Writer;

  constructor(image: Image, writer: Writer) {
    this.#image = image;
    this.#writer = writer;
  }

  /** See NodeIo.preadv. */
  read(at: Offset, iov: Iov): Promise<void> {
    const work = this.#read(at, iov);
    const { opaqueReads } = this.#image;
    opaqueReads.add(work);
    const end = (): void => {
      opaqueReads.delete(work);
    };
    work.then(end, end);
    return work;
  }

  /** See NodeIo.pwritev: of an encrypted image. */
  async write(at: Offset, iov: Iov): Promise<void> {
    for (let done = 0; done < iov.length; ) {
      const length = Math.min(PIECE, iov.length - done);
      done += await this.#writeSome(at + done, iov.slice(done, length));
    }
  }

  /** See NodeIo.writeCompressed: at most one cluster. What does not get smaller is stored as it is. */
  async writeCompressed(at: Offset, iov: Iov): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    if (image.dataFile !== null || image.cipher !== null) {
      const why = image.cipher === null ? 'its data is in an external file' : 'it is encrypted';
      throw new BlockError(Errno.ENOTSUP, `Could not write compressed clusters to the image: ${why}`);
    }
    for (let done = 0; done < iov.length; done += clusterSize) {
      const part = iov.slice(done, Math.min(clusterSize, iov.length - done));
      await this.#writeCluster(at + done, part);
    }
  }

  async #read(at: Offset, iov: Iov): Promise<void> {
    const { clusterSize, subclusterSize } = this.#image.geometry;
    for (let done = 0; done < iov.length; ) {
      const from = at + done;
      const length = Math.min(iov.length - done, subclusterSize - (from % subclusterSize));
      await this.#readWithin(from, from % clusterSize, iov.slice(done, length));
      done += length;
    }
  }

  /** A range inside of one (sub)cluster. */
  async #readWithin(at: Offset, inside: Bytes, iov: Iov): Promise<void> {
    const image = this.#image;
    const { clusterSize, tableEntries } = image.geometry;
    const cluster = Math.floor(at / clusterSize);
    const tableAt = image.tables[Math.floor(cluster / tableEntries)]!;
    if (tableAt < 0) throw image.corrupted(`the L1 entry of the disk's cluster at ${at} is invalid`, at);
    if (tableAt === 0) return this.#readBelow(at, iov);
    const place = findEntry(image, cluster, new EntryPlace());
    while (place.position === MISS) {
      await image.l2.load(place.key);
      findEntry(image, cluster, place);
    }
    const kind = kindAt(image, place.position, inside);
    if (kind === Kind.ABSENT) return this.#readBelow(at, iov);
    if (kind === Kind.ZERO) return iov.fill(0);
    if (kind === Kind.COMPRESSED) {
      const { view } = image.l2;
      const { offset, length } = decodeCompressed(
        ...([view.getUint32(place.position), view.getUint32(place.position + 4)] as const),
        image.header.clusterBits,
      );
      return image.compressed.read(offset, length, inside, iov);
    }
    if (kind === Kind.INVALID) throw image.corrupted(`the L2 entry of the disk's cluster at ${at} is invalid`, at);
    await this.#readData(at, hostAt(image, place.position) + inside, iov);
  }

  async #readBelow(at: Offset, iov: Iov): Promise<void> {
    if (this.#image.backing !== null) await this.#image.backing.read(at, iov);
    else iov.fill(0);
  }

  async #readData(at: Offset, host: Offset, iov: Iov): Promise<void> {
    const { cipher, data, aio } = this.#image;
    if (cipher === null) return data.read(host, iov);
    const bytes = kernelBytes(iov.length);
    await data.read(host, Iov.of(aio.backend.memory(bytes)));
    cipher.decrypt(bytes, this.#sector(at, host));
    iov.copyFrom(bytes);
  }

  /** LUKS counts sectors of the file, the old AES ones of the disk. */
  #sector(at: Offset, host: Offset): number {
    return (this.#image.header.cryptMethod === Crypt.LUKS ? host : at) / SECTOR;
  }

  /** Returns how much was written. */
  async #writeSome(at: Offset, iov: Iov): Promise<Bytes> {
    const image = this.#image;
    const mapping = new Mapping();
    await this.#place(at, iov.length, mapping);
    if (mapping.kind === 'data') {
      const length = Math.min(mapping.length, iov.length);
      await this.#encrypted(at, mapping.at, 0, 0, iov.slice(0, length));
      return length;
    }
    await using room = await this.#writer.reserve(at, iov.length);
    await this.#encrypted(at, room.at, room.head, room.tail, iov.slice(0, room.length));
    image.assertUndamaged();
    await room.commit();
    return room.length;
  }

  /** Where a range may be overwritten: 'data', or elsewhere. */
  async #place(at: Offset, want: Bytes, out: Mapping): Promise<void> {
    const image = this.#image;
    const { clusterSize, subclusterSize } = image.geometry;
    const cluster = Math.floor(at / clusterSize);
    let place = this.#writer.ready(cluster);
    while (place === undefined) {
      await this.#writer.prepare(cluster);
      place = this.#writer.ready(cluster);
    }
    const { position } = place;
    const inside = at % clusterSize;
    const copied = image.l2.view.getUint32(position) >= EntryHigh.COPIED;
    const length = Math.min(want, subclusterSize - (at % subclusterSize));
    if (copied && kindAt(image, position, inside) === Kind.DATA) {
      out.data(length, image.data, hostAt(image, position) + inside);
    } else out.other('absent', length);
  }

  /** Encrypts and writes `iov` with its margins. */
  async #encrypted(at: Offset, host: Offset, head: Bytes, tail: Bytes, iov: Iov): Promise<void> {
    const { cipher, data, aio } = this.#image;
    const bytes = kernelBytes(head + iov.length + tail);
    const memory = aio.backend.memory(bytes);
    if (head > 0) await this.#read(at - head, Iov.of(memory, 0, head));
    if (tail > 0) await this.#read(at + iov.length, Iov.of(memory, head + iov.length, tail));
    iov.copyTo(bytes.subarray(head, head + iov.length));
    cipher!.encrypt(bytes, this.#sector(at - head, host - head));
    await data.write(host - head, Iov.of(memory));
  }

  async #writeCluster(at: Offset, iov: Iov): Promise<void> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    const plain = new Uint8Array(clusterSize);
    iov.copyTo(plain);
    const packed = await image.compressed.pack(plain);
    if (packed === undefined) return this.#storePlain(at, iov);
    const cluster = at / clusterSize;
    const { allocation, host } = await this.#writer.reservePacked(cluster, packed.length);
    let linked = false;
    try {
      await image.io.write(host, packed);
      await this.#writer.commitPacked(cluster, host, packed.length);
      linked = true;
    } finally {
      if (!linked) this.#writer.freePacked(host, packed.length);
      image.allocations.end(allocation);
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
