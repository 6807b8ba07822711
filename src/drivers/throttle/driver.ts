/** throttle: a filter whose requests wait as long as the limits of a throttle group make them. */
import { BlockError, Errno } from '../../base/errors.ts';
import type { Iov } from '../../base/memory.ts';
import type { Bytes, Offset } from '../../base/units.ts';
import type {
  Child,
  Driver,
  DriverNode,
  Mapping,
  MapReason,
  OpenContext,
  SharedThrottle,
  Supported,
  ThrottleMember,
} from '../../block/driver.ts';

export interface ThrottleOptions {
  readonly 'throttle-group': string | SharedThrottle;
}

class ThrottleNode implements DriverNode {
  readonly #file: Child;
  readonly #member: ThrottleMember;

  constructor(file: Child, member: ThrottleMember) {
    this.#file = file;
    this.#member = member;
  }

  get length(): Bytes {
    return this.#file.length;
  }

  /** Without limits it is not there. */
  map(at: Offset, want: Bytes, why: MapReason, out: Mapping): void {
    if (why !== 'status' && this.#member.limits(why === 'write')) out.other('opaque', want);
    else out.data(want, this.#file, at);
  }

  async preadv(at: Offset, iov: Iov): Promise<void> {
    await this.#member.take(false, iov.length);
    await this.#file.read(at, iov);
  }

  async pwritev(at: Offset, iov: Iov, flags: number): Promise<void> {
    await this.#member.take(true, iov.length);
    await this.#file.write(at, iov, flags);
  }

  async zero(at: Offset, length: Bytes, flags: number): Promise<Supported> {
    await this.#member.take(true, length);
    await this.#file.writeZeroes(at, length, flags);
    return 'done';
  }

  async discard(at: Offset, length: Bytes): Promise<Supported> {
    await this.#member.take(true, length);
    await this.#file.discard(at, length);
    return 'done';
  }

  drainBegin(): void {
    this.#member.drain(true);
  }

  drainEnd(): void {
    this.#member.drain(false);
  }

  grew(_end: Offset): void {}

  inactivate(): Record<string, unknown> {
    return {};
  }

  truncate(length: Bytes, prealloc: 'off' | 'falloc' | 'full'): Promise<void> {
    return this.#file.truncate(length, prealloc);
  }

  close(): void {
    this.#member.leave();
  }
}

export const throttleDriver: Driver<ThrottleOptions> = {
  name: 'throttle',
  role: 'filter',
  children: { file: 'filtered' },
  reopenOptions: ['throttle-group'],
  options: { 'throttle-group': { type: 'group', required: true, help: 'name of the throttle group' } },
  async open(context: OpenContext, options: ThrottleOptions): Promise<DriverNode> {
    const file = await context.openChild('file', 'filtered');
    if (!file) throw new BlockError(Errno.EINVAL, "Could not open a 'throttle' node: option 'file' is missing");
    return new ThrottleNode(file, context.joinThrottle(options['throttle-group']));
  },
};
