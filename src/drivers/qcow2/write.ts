/**
 * Allocating writes: `reserve` sets clusters aside and `commit` links them. A reservation is made in one section
 * without `await`; whatever is missing for that is waited for first, and then all is looked at again.
 */
import type { MaybePromise } from '../../aio/op.ts';
import { type Bytes, MiB, type Offset } from '../../base/units.ts';
import type { Child, Reservation } from '../../block/driver.ts';
import { encodeCompressed } from '../../proto/qcow2/compressed-entry.ts';
import { EntryHigh } from '../../proto/qcow2/constants.ts';
import type { Allocation } from './allocations.ts';
import { hostOf, Kind, kindOf } from './entries.ts';
import { hexEntry, type Image } from './image.ts';
import { MISS } from './table-cache.ts';
import { EntryPlace, findEntry, freeEntry, kindAt, ownsTable, ownTable } from './tables.ts';

/** The most that both margins of a copy-on-write may be together; see BOUNCE_MAX of block/bounce.ts. */
const MARGINS_MAX = 2 * MiB;
const ALL = 0xffff_ffff;

/** What the entry of a cluster says to somebody who wants to write to it. */
interface Found {
  /** COPIED, with a place in the file: it can be kept. */
  readonly keeps: boolean;
  readonly host: Offset;
  /** The whole cluster is without data of its own: below, or zeroes. */
  readonly empty: boolean;
  /** Reads as zeroes, whatever is below. */
  readonly zero: boolean;
  /** Of the entry; see entries.ts. */
  readonly kind: number;
  readonly position: number;
}

export class Writer {
  readonly #image: Image;
  readonly #place = new EntryPlace();

  constructor(image: Image) {
    this.#image = image;
  }

  /** See NodeIo.reserve. */
  async reserve(at: Offset, want: Bytes): Promise<Reservation> {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    const cluster = Math.floor(at / clusterSize);
    for (;;) {
      const place = this.ready(cluster);
      if (place === undefined) {
        await this.prepare(cluster);
        continue;
      }
      const most = Math.min(place.left, Math.ceil((at + want) / clusterSize) - cluster);
      const other = image.allocations.overlapping(cluster, cluster + most - 1);
      // One that begins later leaves room for a shorter reservation.
      const clusters = other && other.first > cluster ? other.first - cluster : most;
      if (other && other.first <= cluster) {
        await other.gate.promise;
        continue;
      }
      const reservation = this.#take(place.position, at, Math.min(want, (cluster + clusters) * clusterSize - at));
      if (reservation) {
        const stop = reservation.allocated ? image.file.point('cluster_alloc') : undefined;
        if (stop !== undefined) await stop;
        return reservation;
      }
      await image.refcounts.prepare();
    }
  }

  /** The L2 entry of a cluster when it is in memory and may be changed, until the next `await`. Undefined when
   *  something is missing for that: await {@link prepare} and ask again. */
  ready(cluster: number): EntryPlace | undefined {
    const image = this.#image;
    image.assertUndamaged();
    if (!ownsTable(image, cluster)) return undefined;
    const place = findEntry(image, cluster, this.#place);
    return place.position === MISS ? undefined : place;
  }

  /** Brings in what {@link ready} was missing; it may be gone again when the caller goes on. */
  async prepare(cluster: number): Promise<void> {
    const image = this.#image;
    if (!ownsTable(image, cluster)) await ownTable(image, cluster);
    else await image.l2.load(findEntry(image, cluster, this.#place).key);
  }

  /** Undefined when free clusters have to be prepared first. */
  #take(position: number, at: Offset, want: Bytes): Room | undefined {
    const image = this.#image;
    const { clusterSize, entryBytes } = image.geometry;
    const cluster = Math.floor(at / clusterSize);
    const clusters = Math.ceil((at + want) / clusterSize) - cluster;
    const first = this.#found(position, cluster);
    let count = 1;
    // Neighbours that can be had in the same way.
    while (count < clusters) {
      const next = this.#found(position + count * entryBytes, cluster + count);
      if (next.keeps !== first.keeps) break;
      if (first.keeps && next.host !== first.host + count * clusterSize) break;
      count++;
    }
    let host = first.host;
    let fresh = false;
    if (!first.keeps && image.dataFile !== null) {
      host = cluster * clusterSize;
    } else if (!first.keeps) {
      host = image.refcounts.take(count);
      if (host < 0) return undefined;
      count = image.refcounts.taken;
      fresh = image.refcounts.takenFresh;
    }
    const end = Math.min(at + want, (cluster + count) * clusterSize);
    const last = count === 1 ? first : this.#found(position + (count - 1) * entryBytes, cluster + count - 1);
    const head = this.#margin(at, at % this.#unit(first), first, fresh);
    const over = end % this.#unit(last);
    let tail = over === 0 ? 0 : this.#margin(end, this.#unit(last) - over, last, fresh);
    // Both margins of a long range may be too much: then the first cluster goes alone.
    if (count > 1 && head + tail > MARGINS_MAX) {
      if (!first.keeps && image.dataFile === null) image.refcounts.free(host + clusterSize, count - 1, 'other');
      count = 1;
      tail = 0;
    }
    const length = Math.min(end, (cluster + count) * clusterSize) - at;
    const allocation = image.allocations.add(cluster, cluster + count - 1);
    const room = { child: image.data, at: host + (at % clusterSize), length, head, tail };
    return new Room(image, allocation, room, host, { cluster, count, allocated: !first.keeps, from: at });
  }

  /** The kind of an L2 entry that is about to be changed; one that cannot be one must not be taken for anything. */
  assertValid(position: number, cluster: number): number {
    const image = this.#image;
    const { view } = image.l2;
    const { clusterSize, extended } = image.geometry;
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    const flat = image.dataFile !== null;
    const kind = kindOf(high, low, clusterSize - 1, !extended && image.header.version >= 3, flat);
    if (kind !== Kind.INVALID) return kind;
    const at = cluster * clusterSize;
    throw image.corrupted(`the L2 entry ${hexEntry(high, low)} of the disk's cluster at ${at} is invalid`, at);
  }

  #found(position: number, cluster: number): Found {
    const image = this.#image;
    const { view } = image.l2;
    const high = view.getUint32(position);
    const low = view.getUint32(position + 4);
    const flat = image.dataFile !== null;
    const kind = this.assertValid(position, cluster);
    const compressed = kind === Kind.COMPRESSED;
    const host = compressed ? 0 : hostOf(high, low);
    const copied = high >= EntryHigh.COPIED;
    const keeps = !compressed && copied && (host !== 0 || flat);
    if (keeps && !flat && image.metadata.has(host)) {
      throw image.corrupted(`a data cluster of the disk is at ${host}, where metadata is`, host);
    }
    const empty = kind === Kind.ABSENT || kind === Kind.ZERO;
    return { keeps, host, empty, zero: kind === Kind.ZERO, kind, position };
  }

  /** `bytes` at the edge `at` of a range make its (sub)cluster whole: how many of them have to be copied. */
  #margin(at: Offset, bytes: Bytes, found: Found, fresh: boolean): Bytes {
    if (bytes === 0) return 0;
    // In place: others may be writing next to us right now, and must not be overwritten with what was there before.
    if (found.keeps && kindAt(this.#image, found.position, at % this.#image.geometry.clusterSize) === Kind.DATA)
      return 0;
    // New clusters are zeroes: what is zeroes anyway needs no copying. But zeroes do not decrypt to zeroes.
    const { backing, cipher } = this.#image;
    if (cipher !== null) return bytes;
    const zeroes = found.zero || backing === null || at - (at % this.#unit(found)) >= backing.length;
    return fresh && found.empty && zeroes ? 0 : bytes;
  }

  /** A cluster with data elsewhere is copied as a whole; else subclusters can be filled one by one. */
  #unit(found: Found): Bytes {
    const { clusterSize, subclusterSize } = this.#image.geometry;
    return found.empty || found.keeps ? subclusterSize : clusterSize;
  }

  /** As reserve, for a compressed cluster: where its bytes go. End the allocation when it is linked, or will not be. */
  async reservePacked(cluster: number, length: Bytes): Promise<{ allocation: Allocation; host: Offset }> {
    const { allocations, refcounts } = this.#image;
    for (;;) {
      const place = this.ready(cluster);
      if (place === undefined) {
        await this.prepare(cluster);
        continue;
      }
      const other = allocations.overlapping(cluster, cluster);
      if (other) {
        await other.gate.promise;
        continue;
      }
      this.assertValid(place.position, cluster);
      const host = refcounts.takeBytes(length);
      if (host >= 0) {
        const allocation = allocations.add(cluster, cluster);
        await this.#image.file.point('cluster_alloc_bytes');
        return { allocation, host };
      }
      await refcounts.prepare();
    }
  }

  async commitPacked(cluster: number, host: Offset, length: Bytes): Promise<void> {
    const image = this.#image;
    await image.file.point('l2_update_compressed');
    let place = this.ready(cluster);
    while (place === undefined) {
      await this.prepare(cluster);
      place = this.ready(cluster);
    }
    const { slot, position } = place;
    const { view } = image.l2;
    image.l2.modify(slot);
    freeEntry(image, view.getUint32(position), view.getUint32(position + 4), 'other');
    const { high, low } = encodeCompressed(host, length, image.header.clusterBits);
    view.setUint32(position, high);
    view.setUint32(position + 4, low);
    if (!image.geometry.extended) return;
    view.setUint32(position + 8, 0);
    view.setUint32(position + 12, 0);
  }

  /** It will not be linked. */
  freePacked(host: Offset, length: Bytes): void {
    const { high, low } = encodeCompressed(host, length, this.#image.header.clusterBits);
    freeEntry(this.#image, high, low, 'other');
  }
}

/** One reservation. */
class Room implements Reservation {
  readonly length: Bytes;
  readonly child: Child;
  readonly at: Offset;
  readonly head: Bytes;
  readonly tail: Bytes;
  /** Its clusters in the file are new. */
  readonly allocated: boolean;
  readonly #image: Image;
  readonly #allocation: Allocation;
  readonly #host: Offset;
  readonly #what: RoomWhat;
  #open = true;

  constructor(
    image: Image,
    allocation: Allocation,
    room: { child: Child; at: Offset; length: Bytes; head: Bytes; tail: Bytes },
    host: Offset,
    what: RoomWhat,
  ) {
    this.#image = image;
    this.#allocation = allocation;
    this.#host = host;
    this.#what = what;
    this.length = room.length;
    this.child = room.child;
    this.at = room.at;
    this.head = room.head;
    this.tail = room.tail;
    this.allocated = what.allocated;
  }

  commit(): MaybePromise<void> {
    const place = findEntry(this.#image, this.#what.cluster, new EntryPlace());
    if (place.position === MISS) return this.#commitLater(place.key);
    this.#link(place.slot, place.position);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    const { count, allocated } = this.#what;
    // Nobody has seen these clusters, but what is in them is not zeroes any more.
    if (allocated && this.#image.dataFile === null) this.#image.refcounts.free(this.#host, count, 'other');
    this.#image.allocations.end(this.#allocation);
  }

  async #commitLater(key: Offset): Promise<void> {
    await this.#image.l2.load(key);
    await this.commit();
  }

  #link(slot: number, position: number): void {
    const image = this.#image;
    image.assertUndamaged();
    const { entryBytes, clusterSize, extended } = image.geometry;
    const { view } = image.l2;
    image.l2.modify(slot);
    for (let i = 0; i < this.#what.count; i++) {
      const entry = position + i * entryBytes;
      const high = view.getUint32(entry);
      const low = view.getUint32(entry + 4);
      const host = this.#host + i * clusterSize;
      if (this.#what.allocated) freeEntry(image, high, low, 'other');
      view.setUint32(entry, (Math.floor(host / 2 ** 32) | EntryHigh.COPIED) >>> 0);
      view.setUint32(entry + 4, host % 2 ** 32);
      if (extended) this.#linkSubclusters(entry, i, (high & EntryHigh.COMPRESSED) !== 0);
    }
    this.#open = false;
    image.allocations.end(this.#allocation);
  }

  #linkSubclusters(entry: number, i: number, wasCompressed: boolean): void {
    const { clusterSize, subclusterSize } = this.#image.geometry;
    const { view } = this.#image.l2;
    const start = (this.#what.cluster + i) * clusterSize;
    const from = Math.max(0, this.#what.from - this.head - start);
    const to = Math.min(clusterSize, this.#what.from + this.length + this.tail - start);
    const first = Math.floor(from / subclusterSize);
    const last = Math.ceil(to / subclusterSize) - 1;
    const written = ((ALL >>> (31 - (last - first))) << first) >>> 0;
    const zeroes = wasCompressed ? 0 : view.getUint32(entry + 8);
    const allocated = wasCompressed ? 0 : view.getUint32(entry + 12);
    view.setUint32(entry + 8, (zeroes & ~written) >>> 0);
    view.setUint32(entry + 12, (allocated | written) >>> 0);
  }
}

interface RoomWhat {
  /** Of the disk, and how many. */
  readonly cluster: number;
  readonly count: number;
  /** The clusters in the file are new. */
  readonly allocated: boolean;
  /** Where the write begins on the disk. */
  readonly from: Offset;
}
