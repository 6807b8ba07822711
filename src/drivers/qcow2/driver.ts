/** qcow2: the driver and its node, which hands each question to the part that answers it. See docs/QCOW2.md. */
import type { Timer } from '../../aio/timers.ts';
import type { Iov } from '../../base/memory.ts';
import { type Bytes, type Offset, SECTOR } from '../../base/units.ts';
import type {
  BitmapStore,
  CheckFix,
  CheckResult,
  Child,
  Driver,
  DriverNode,
  Limits,
  Mapping,
  MapReason,
  MaybePromise,
  OpenContext,
  Reservation,
  Supported,
} from '../../block/driver.ts';
import { Incompatible, QCOW2_MAGIC } from '../../proto/qcow2/constants.ts';
import { AMENDABLE, amend } from './amend.ts';
import { checkFile, checkImage } from './check.ts';
import { createImage } from './create.ts';
import { createOptions } from './create-options.ts';
import { Eraser } from './erase.ts';
import type { Image } from './image.ts';
import { imageInfo } from './info.ts';
import { Lookup } from './lookup.ts';
import { OpaqueIo } from './opaque.ts';
import { openImage, reopen, reread } from './open.ts';
import { optionSpecs, type Qcow2Options, reopenOptions } from './options.ts';
import { resize } from './resize.ts';
import { Snapshots } from './snapshots.ts';
import { Writer } from './write.ts';

const CLEAN_SECONDS = 600;
const NS = 1e9;

export class Qcow2Node implements DriverNode {
  readonly limits: Partial<Limits>;
  readonly image: Image;
  readonly snapshots: Snapshots;
  readonly #lookup: Lookup;
  readonly #writer: Writer;
  readonly #eraser: Eraser;
  readonly #opaque: OpaqueIo;
  readonly #cleaning: Timer;
  readonly #cleanSeconds: number;
  /** It goes on in another thread, or another process: see inactivate(). */
  #inactive: boolean;

  constructor(image: Image, cleanSeconds: number, inactive: boolean) {
    this.image = image;
    this.#inactive = inactive;
    this.snapshots = new Snapshots(image);
    this.#lookup = new Lookup(image, image.cipher !== null);
    this.#writer = new Writer(image);
    this.#eraser = new Eraser(image, this.#writer);
    this.#opaque = new OpaqueIo(image, this.#writer);
    const { clusterSize, subclusterSize } = image.geometry;
    this.limits = {
      optimal: subclusterSize,
      zeroAlignment: clusterSize,
      discardAlignment: clusterSize,
      ...(image.cipher === null ? {} : { alignment: SECTOR }),
    };
    this.#cleaning = image.aio.timer(() => this.#clean(), 'qcow2 cache cleaning');
    this.#cleanSeconds = cleanSeconds;
    if (!inactive) this.#armCleaning();
  }

  get bitmaps(): BitmapStore | undefined {
    return this.image.bitmaps ?? undefined;
  }

  get length(): Bytes {
    return this.image.size;
  }

  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): MaybePromise<void> {
    return this.#lookup.map(at, want, why, out);
  }

  reserve(at: Offset, want: Bytes): Promise<Reservation> {
    return this.#writer.reserve(at, want);
  }

  preadv(at: Offset, iov: Iov): Promise<void> {
    return this.#opaque.read(at, iov);
  }

  pwritev(at: Offset, iov: Iov): Promise<void> {
    return this.#opaque.write(at, iov);
  }

  writeCompressed(at: Offset, iov: Iov): Promise<void> {
    return this.#opaque.writeCompressed(at, iov);
  }

  zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    return this.#eraser.zero(at, length, flags);
  }

  discard(at: Offset, length: Bytes): Promise<Supported> {
    return this.#eraser.discard(at, length);
  }

  flush(): MaybePromise<void> {
    return this.image.sync.dirty ? this.image.sync.run() : undefined;
  }

  drainBusy(): boolean {
    return this.image.sync.busy;
  }

  async truncate(length: Bytes, preallocation: 'off' | 'falloc' | 'full', settle: () => Promise<void>): Promise<void> {
    // Their tables are for the length that the disk has now.
    await this.bitmaps?.use(this.bitmaps.stored.map(({ name }) => name));
    await resize(this.image, { writer: this.#writer, eraser: this.#eraser, settle }, length, preallocation);
  }

  info(): Record<string, unknown> {
    return imageInfo(this.image);
  }

  amend(changes: Readonly<Record<string, unknown>>): Promise<void> {
    return amend(this.image, this.#writer, changes);
  }

  async empty(): Promise<void> {
    const { image } = this;
    image.assertUndamaged();
    await image.file.point('empty_image_prepare');
    await this.#eraser.unmap(0, image.size);
    await image.sync.run();
  }

  takeBacking(child: Child): void {
    this.image.backing = child;
  }

  dropBacking(): void {
    this.image.backing = null;
  }

  /** What was found damaged while in use can be repaired: then writes go on. */
  async check(fix: CheckFix): Promise<CheckResult> {
    const { image } = this;
    if (!image.readOnly && image.damage === null) await image.sync.completeRefcounts();
    if (fix === 'none') return checkImage(image, fix);
    try {
      const result = await checkImage(image, fix);
      if (result.corruptions + result.checkErrors === 0) image.repaired();
      return result;
    } finally {
      await reread(image);
      await image.bitmaps?.writable();
    }
  }

  async inactivate(): Promise<Record<string, unknown>> {
    const { image } = this;
    // Its mark on the disk would keep the other thread from writing, which this one may once it is repaired.
    if (image.damage !== null) throw image.damage;
    this.#cleaning.cancel();
    await this.#leaveClean();
    this.#inactive = true;
    return { 'lazy-refcounts': image.settings.lazyRefcounts };
  }

  async activate(anew = false): Promise<void> {
    if (!this.#inactive) return;
    const { image } = this;
    this.#inactive = false;
    this.#armCleaning();
    if (image.readOnly && !anew) return;
    try {
      await reopen(image, anew);
      await image.bitmaps?.writable();
    } catch (error) {
      if (anew) {
        // It is the other one's still.
        this.#cleaning.cancel();
        this.#inactive = true;
      } else {
        // What the other one has made of it is not known.
        image.suspect('it could not be read again after somebody else had it', 0);
      }
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#cleaning.cancel();
    if (!this.#inactive) await this.#leaveClean();
  }

  async #leaveClean(): Promise<void> {
    const { image } = this;
    if (image.readOnly || image.damage !== null) return;
    await image.sync.completeRefcounts();
    await image.mark(Incompatible.DIRTY, false);
  }

  #armCleaning(): void {
    if (this.#cleanSeconds > 0) this.#cleaning.armIn(this.#cleanSeconds * NS);
  }

  #clean(): void {
    this.image.l2.clean();
    this.image.refcounts.cache.clean();
    this.#armCleaning();
  }
}

export const qcow2Driver: Driver<Qcow2Options> = {
  name: 'qcow2',
  role: 'format',
  children: { file: 'primary', backing: 'cow', 'data-file': 'data' },
  options: optionSpecs,
  reopenOptions,
  createOptions,
  amendOptions: AMENDABLE,
  probe: (head) => (new DataView(head.buffer, head.byteOffset, head.length).getUint32(0) === QCOW2_MAGIC ? 100 : 0),
  async open(context: OpenContext, options: Qcow2Options): Promise<DriverNode> {
    const image = await openImage(context, options);
    return new Qcow2Node(image, options['cache-clean-interval'] ?? CLEAN_SECONDS, context.inactive ?? false);
  },
  create: createImage,
  check: checkFile,
};
