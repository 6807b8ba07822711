/** The bytes of a simulated file: pages that exist, and holes where they do not. */
import { alignDown, alignUp, type Bytes, type Offset } from '../../base/units.ts';

export const PAGE: Bytes = 4096;

export class PageStore {
  #pages = new Map<number, Uint8Array>();
  /** Pages that a copy of this store has, too: they are not to be changed. */
  #shared = new Set<number>();
  /** Pages set aside by `allocate` that hold nothing yet. */
  readonly #reserved = new Set<number>();
  size: Bytes = 0;

  /** Bytes in use. */
  get used(): Bytes {
    return (this.#pages.size + this.#reserved.size) * PAGE;
  }

  clone(): PageStore {
    const copy = new PageStore();
    copy.size = this.size;
    copy.#pages = new Map(this.#pages);
    copy.#shared = new Set(this.#pages.keys());
    this.#shared = new Set(this.#pages.keys());
    for (const index of this.#reserved) copy.#reserved.add(index);
    return copy;
  }

  /** Bytes that a write of [at, at + length) would use in addition. */
  cost(at: Offset, length: Bytes): Bytes {
    let missing = 0;
    for (let index = Math.floor(at / PAGE); index * PAGE < at + length; index++) {
      if (!this.#pages.has(index) && !this.#reserved.has(index)) missing++;
    }
    return missing * PAGE;
  }

  /** Fills `target` with the bytes from `at`, up to the end of the file; returns the count. */
  read(at: Offset, target: Uint8Array): Bytes {
    const count = Math.max(0, Math.min(target.length, this.size - at));
    for (let done = 0; done < count; ) {
      const from = (at + done) % PAGE;
      const take = Math.min(PAGE - from, count - done);
      const page = this.#pages.get(Math.floor((at + done) / PAGE));
      if (page) target.set(page.subarray(from, from + take), done);
      else target.fill(0, done, done + take);
      done += take;
    }
    return count;
  }

  write(at: Offset, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const from = (at + done) % PAGE;
      const take = Math.min(PAGE - from, bytes.length - done);
      this.#page(Math.floor((at + done) / PAGE)).set(bytes.subarray(done, done + take), from);
      done += take;
    }
    this.size = Math.max(this.size, at + bytes.length);
  }

  /** Makes a range zero; whole pages go away when `punch`. The size stays. */
  zero(at: Offset, length: Bytes, punch: boolean): void {
    const end = at + length;
    for (const index of [...this.#pages.keys(), ...(punch ? this.#reserved : [])]) {
      const start = index * PAGE;
      if (start >= end || start + PAGE <= at) continue;
      if (punch && start >= at && start + PAGE <= end) {
        this.#pages.delete(index);
        this.#shared.delete(index);
        this.#reserved.delete(index);
      } else if (this.#pages.has(index)) {
        this.#page(index).fill(0, Math.max(0, at - start), Math.min(PAGE, end - start));
      }
    }
  }

  reserve(at: Offset, length: Bytes): void {
    for (let index = Math.floor(at / PAGE); index * PAGE < at + length; index++) {
      if (!this.#pages.has(index)) this.#reserved.add(index);
    }
    this.size = Math.max(this.size, at + length);
  }

  resize(size: Bytes): void {
    if (size < this.size) this.zero(size, alignUp(this.size, PAGE) - size, true);
    this.size = size;
  }

  /** As AioFile.extent. */
  extent(at: Offset, limit: Bytes): number {
    if (at >= this.size) return 0;
    const end = Math.min(this.size, at + limit);
    const data = this.#pages.has(Math.floor(at / PAGE));
    let next = alignDown(at, PAGE) + PAGE;
    if (data) {
      while (next < end && this.#pages.has(next / PAGE)) next += PAGE;
      return Math.min(next, end) - at;
    }
    // Holes can be far larger than the data: look at the pages that there are.
    next = end;
    for (const index of this.#pages.keys()) if (index * PAGE > at && index * PAGE < next) next = index * PAGE;
    return at - next;
  }

  #page(index: number): Uint8Array {
    let page = this.#pages.get(index);
    if (page && !this.#shared.has(index)) return page;
    page = page ? page.slice() : new Uint8Array(PAGE);
    this.#pages.set(index, page);
    this.#shared.delete(index);
    this.#reserved.delete(index);
    return page;
  }
}
