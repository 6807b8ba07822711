/**
 * A client's use of lent extents: reads and writes that it does on the disk's file by itself, in its own context, while
 * what it knows is true (docs/CHANNELS.md, "Lent extents").
 *
 * It never waits and never fails: what it cannot do at once is asked of home, as every other request is.
 */
import type { AioFile } from '../aio/backend.ts';
import type { AioContext } from '../aio/context.ts';
import { AioOp } from '../aio/op.ts';
import { BlockError } from '../base/errors.ts';
import type { Iov } from '../base/memory.ts';
import { type Bytes, KiB, type Offset } from '../base/units.ts';
import { ChannelKind, DiskWord, Field, Lent, readHalves, type SharedWords, Word } from './layout.ts';
import { BlkOp } from './op.ts';

/** Blocks that are known are of this size, and so many: 4 GiB of the disk, in 1.1 MiB. */
const BLOCK: Bytes = 64 * KiB;
const BLOCKS = 65_536;
/** Asked for at a time. */
const ASK_BYTES: Bytes = 64 * 1024 * KiB;
/** Of a block, instead of bits of Lent. */
const NOT_LENT = 0;

/** What a borrower needs of its handle. */
export interface BorrowerLink {
  readonly words: SharedWords;
  readonly disk: SharedWords;
  /** Bytes of the disk. */
  readonly length: Bytes;
  submit(op: BlkOp): void;
  /** Schedules home's bottom half. */
  wakeHome(): void;
  /** Takes in what home has posted. */
  readPort(): void;
}

class Borrowed extends AioOp {
  readonly #borrower: Borrower;
  user: AioOp | null = null;
  parity = 0;

  constructor(borrower: Borrower) {
    super();
    this.#borrower = borrower;
  }

  complete(result: number): void {
    this.#borrower.ended(this, result);
  }
}

class Question extends BlkOp {
  readonly #ended: (error: number) => void;

  constructor(ended: (error: number) => void) {
    super();
    this.kind = ChannelKind.BORROW;
    this.#ended = ended;
  }

  done(error: number): void {
    this.#ended(error);
  }
}

export class Borrower {
  readonly #context: AioContext;
  readonly #link: BorrowerLink;
  readonly #question = new Question((error) => this.#answered(error));
  readonly #spare: Borrowed[] = [];
  /** By block, modulo BLOCKS: which block it is, where it is in the file, what may be done. */
  readonly #blocks = new Float64Array(BLOCKS).fill(-1);
  readonly #places = new Float64Array(BLOCKS);
  readonly #rights = new Uint8Array(BLOCKS);
  /** The whole disk lies in the file from here on; -1 where that is not so. */
  #linear: Offset = -1;
  #linearRights = 0;
  /** What is known is true in this epoch. */
  #epoch = 0;
  /** Nothing is lent in this epoch. */
  #refused = false;
  /** In this epoch the question about the whole disk was put. */
  #asked = false;
  #file: AioFile | null = null;
  #closed = false;
  #answer = { at: 0, place: 0, length: 0, rights: 0, epoch: 0 };

  constructor(context: AioContext, link: BorrowerLink) {
    this.#context = context;
    this.#link = link;
    this.#question.answered = (words, at) => {
      this.#answer.place = readHalves(words, at + Field.AT_LOW);
      this.#answer.length = readHalves(words, at + Field.LENGTH_LOW);
      this.#answer.rights = words[at + Field.STATUS]!;
      this.#answer.epoch = words[at + Field.LAYER]!;
    };
  }

  /** True when the request is on its way to the file; `user` completes as of AioFile. */
  start(user: AioOp, iov: Iov, at: Offset, write: boolean): boolean {
    const { words, disk } = this.#link;
    const epoch = Atomics.load(disk, DiskWord.LEASE_EPOCH);
    if (epoch !== this.#epoch) this.#forget(epoch);
    const need = write ? Lent.WRITE : Lent.READ;
    const place = this.#place(at, iov.length, need);
    const file = this.#file;
    if (place < 0 || file === null) return false;
    const parity = epoch & 1;
    // First counted, then looked: home does it the other way round.
    Atomics.add(words, Word.BORROWED + parity, 1);
    if (Atomics.load(disk, DiskWord.LEASE_EPOCH) !== epoch || (Atomics.load(disk, DiskWord.LENT) & need) === 0) {
      this.#leave(parity);
      return false;
    }
    const op = this.#spare.pop() ?? new Borrowed(this);
    op.user = user;
    op.parity = parity;
    if (write) file.write(op, iov, place, false);
    else file.read(op, iov, place);
    return true;
  }

  /** @internal */
  ended(op: Borrowed, result: number): void {
    const user = op.user!;
    op.user = null;
    this.#spare.push(op);
    this.#leave(op.parity);
    user.complete(result);
  }

  #leave(parity: number): void {
    const { words, disk } = this.#link;
    if (Atomics.sub(words, Word.BORROWED + parity, 1) !== 1) return;
    if (Atomics.load(disk, DiskWord.LENDER_WAITS) === 1) this.#link.wakeHome();
  }

  /** Where a range is in the file, when all of it is known, in one piece and with the right; else -1, and home is asked
   *  what it does not know. */
  #place(at: Offset, length: Bytes, need: number): Offset {
    if (this.#refused || at + length > this.#link.length) return -1;
    if (this.#linear >= 0) return (this.#linearRights & need) === 0 ? -1 : at + this.#linear;
    const first = Math.floor(at / BLOCK);
    const last = Math.floor((at + length - 1) / BLOCK);
    const from = first % BLOCKS;
    if (this.#blocks[from] !== first) return this.#ask(first);
    const start = this.#places[from]!;
    let rights = this.#rights[from]!;
    for (let block = first + 1; block <= last && (rights & need) !== 0; block++) {
      const slot = block % BLOCKS;
      if (this.#blocks[slot] !== block) return this.#ask(block);
      rights &= this.#places[slot] === start + (block - first) * BLOCK ? this.#rights[slot]! : 0;
    }
    return (rights & need) === 0 ? -1 : start + at - first * BLOCK;
  }

  #ask(block: number): -1 {
    const op = this.#question;
    if (op.slot !== -1 || this.#closed) return -1;
    const { length } = this.#link;
    // The first question is about all of it.
    const whole = !this.#asked;
    this.#asked = true;
    op.at = whole ? 0 : block * BLOCK;
    op.length = whole ? length : Math.min(ASK_BYTES, length - op.at);
    this.#answer.at = op.at;
    if (op.length > 0) this.#link.submit(op);
    return -1;
  }

  #answered(error: number): void {
    const { at, place, length, rights, epoch } = this.#answer;
    if (error !== 0 || this.#closed || epoch !== Atomics.load(this.#link.disk, DiskWord.LEASE_EPOCH)) return;
    if (epoch !== this.#epoch) this.#forget(epoch);
    this.#link.readPort();
    this.#refused = rights === Lent.NEVER;
    if (this.#refused) return;
    if (at === 0 && rights !== 0 && length >= this.#link.length) {
      this.#linear = place;
      this.#linearRights = rights;
      return;
    }
    const first = Math.ceil(at / BLOCK);
    const rest = at + length >= this.#link.length ? BLOCK - 1 : 0;
    const end = Math.floor((at + length + rest) / BLOCK);
    for (let block = first; block < end; block++) this.#learn(block, place + block * BLOCK - at, rights);
    if (end <= first) this.#learn(Math.floor(at / BLOCK), 0, NOT_LENT);
  }

  #learn(block: number, place: Offset, rights: number): void {
    const slot = block % BLOCKS;
    this.#blocks[slot] = block;
    this.#places[slot] = place;
    this.#rights[slot] = rights;
  }

  /** What was not lent because nothing was there may be from now on: this client has written there. */
  wrote(at: Offset, length: Bytes): void {
    const last = Math.floor((at + length - 1) / BLOCK);
    for (let block = Math.floor(at / BLOCK); block <= last; block++) {
      const slot = block % BLOCKS;
      if (this.#blocks[slot] === block && this.#rights[slot] === NOT_LENT) this.#blocks[slot] = -1;
    }
  }

  #forget(epoch: number): void {
    this.#epoch = epoch;
    this.#refused = false;
    this.#asked = false;
    this.#linear = -1;
    this.#blocks.fill(-1);
  }

  /** Home has told which file it is. */
  fileIs(fd: number, epoch: number): void {
    const { words, disk } = this.#link;
    const parity = epoch & 1;
    Atomics.add(words, Word.BORROWED + parity, 1);
    // Only then it is that file still.
    const valid = Atomics.load(disk, DiskWord.LEASE_EPOCH) === epoch && Atomics.load(disk, DiskWord.LENT) !== 0;
    if (!valid || this.#closed) {
      this.#leave(parity);
      return;
    }
    this.#context.run('borrow a file', () => this.#open(fd, parity));
  }

  async #open(fd: number, parity: number): Promise<void> {
    const before = this.#file;
    this.#file = null;
    try {
      const file = await this.#context.backend.openFile('lent', { fd, writable: true });
      if (this.#closed) await file.close();
      else this.#file = file;
    } catch (error) {
      // Without a descriptor to spare (EMFILE) home is asked for everything, as before.
      if (!(error instanceof BlockError)) throw error;
    } finally {
      this.#leave(parity);
    }
    await before?.close();
  }

  /** Nothing is in flight. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#file?.close();
    this.#file = null;
  }
}
