/** One queue's requests in flight, in memory that outlives this process. See proto/vhost-user/inflight.ts. */
import {
  INFLIGHT_DESCRIPTOR_BYTES,
  INFLIGHT_VERSION,
  InflightAt,
  InflightDescriptorAt,
} from '../../proto/vhost-user/inflight.ts';
import type { SplitRing } from './split-ring.ts';

const TWO_32 = 0x1_0000_0000;

export class InflightQueue {
  readonly #view: DataView;
  readonly #at: number;
  readonly #size: number;
  #counter = 1;

  constructor(view: DataView, at: number, size: number) {
    this.#view = view;
    this.#at = at;
    this.#size = size;
  }

  /**
   * What was in flight when the last back-end ended, oldest first; `ring`, which says what the driver was shown, goes
   * on where that was. The memory is the front-end's: whatever it holds, the answer is a list of different heads.
   */
  recover(ring: SplitRing): number[] {
    const heads = this.#recover(ring.usedIndex);
    ring.lastAvail = (ring.usedIndex + heads.length) & 0xffff;
    return heads;
  }

  #recover(usedIndex: number): number[] {
    const { USED, LAST_BATCH } = InflightAt;
    if (this.#u16(InflightAt.VERSION) !== INFLIGHT_VERSION || this.#u16(InflightAt.COUNT) !== this.#size) {
      this.#clear(usedIndex);
      return [];
    }
    // The last batch was shown, and its descriptors were not let go of yet.
    const shown = (usedIndex - this.#u16(USED)) & 0xffff;
    let head = this.#u16(LAST_BATCH);
    for (let i = 0; i < shown && i < this.#size && head < this.#size; i++) {
      this.#view.setUint8(this.#descriptor(head), 0);
      head = this.#view.getUint16(this.#descriptor(head) + InflightDescriptorAt.NEXT, true);
    }
    this.#setU16(USED, usedIndex);
    const found: { readonly head: number; readonly counter: number }[] = [];
    for (let each = 0; each < this.#size; each++) {
      const at = this.#descriptor(each);
      if (this.#view.getUint8(at + InflightDescriptorAt.INFLIGHT) === 0) continue;
      const counterAt = at + InflightDescriptorAt.COUNTER;
      const counter = this.#view.getUint32(counterAt + 4, true) * TWO_32 + this.#view.getUint32(counterAt, true);
      found.push({ head: each, counter });
    }
    found.sort((a, b) => a.counter - b.counter);
    const last = found.at(-1)?.counter ?? 0;
    this.#counter = Number.isSafeInteger(last + 1) ? last + 1 : 1;
    return found.map((entry) => entry.head);
  }

  /** A request was taken; what it goes by here. */
  begin(head: number): number {
    const at = this.#descriptor(head);
    const counter = this.#counter++;
    const high = Math.floor(counter / TWO_32);
    this.#view.setUint32(at + InflightDescriptorAt.COUNTER, counter - high * TWO_32, true);
    this.#view.setUint32(at + InflightDescriptorAt.COUNTER + 4, high, true);
    this.#view.setUint8(at + InflightDescriptorAt.INFLIGHT, 1);
    return head;
  }

  /** It is done, and belongs to the batch that is shown next. */
  stage(head: number): void {
    const last = this.#u16(InflightAt.LAST_BATCH);
    this.#view.setUint16(this.#descriptor(head) + InflightDescriptorAt.NEXT, last, true);
    this.#setU16(InflightAt.LAST_BATCH, head);
  }

  /** The batch of `count` was shown. */
  shown(count: number, usedIndex: number): void {
    let head = this.#u16(InflightAt.LAST_BATCH);
    for (let i = 0; i < count && head < this.#size; i++) {
      const at = this.#descriptor(head);
      this.#view.setUint8(at + InflightDescriptorAt.INFLIGHT, 0);
      head = this.#view.getUint16(at + InflightDescriptorAt.NEXT, true);
    }
    this.#setU16(InflightAt.USED, usedIndex);
  }

  #clear(usedIndex: number): void {
    for (let head = 0; head < this.#size; head++) this.#view.setUint8(this.#descriptor(head), 0);
    this.#setU16(InflightAt.LAST_BATCH, 0);
    this.#setU16(InflightAt.USED, usedIndex);
    this.#setU16(InflightAt.COUNT, this.#size);
    this.#setU16(InflightAt.VERSION, INFLIGHT_VERSION);
  }

  #descriptor(head: number): number {
    return this.#at + InflightAt.DESCRIPTORS + head * INFLIGHT_DESCRIPTOR_BYTES;
  }

  #u16(at: number): number {
    return this.#view.getUint16(this.#at + at, true);
  }

  #setU16(at: number, value: number): void {
    this.#view.setUint16(this.#at + at, value, true);
  }
}
