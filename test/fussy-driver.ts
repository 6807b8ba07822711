/** A filter of a program's own, for the tests: it does not open in a thread of a certain name. */
import { BlockError, type Child, type Driver, type DriverNode, Errno, type Mapping } from '../src/lib/driver-api.ts';

interface FussyOptions {
  /** The thread where it fails once its child is open, and the one that ends then. */
  readonly 'fails-in'?: string;
  readonly 'ends-in'?: string;
}

class FussyNode implements DriverNode {
  readonly #file: Child;

  constructor(file: Child) {
    this.#file = file;
  }

  get length(): number {
    return this.#file.length;
  }

  map(at: number, want: number, _why: string, out: Mapping): void {
    out.data(want, this.#file, at);
  }

  inactivate(): Record<string, unknown> {
    return {};
  }
}

const driver: Driver<FussyOptions> = {
  name: 'fussy',
  role: 'filter',
  children: { file: 'filtered' },
  options: {
    'fails-in': { type: 'string', help: 'name of the thread where it fails' },
    'ends-in': { type: 'string', help: 'name of the thread that it ends' },
  },
  async open(context, options) {
    const file = (await context.openChild('file', 'filtered'))!;
    if (options['fails-in'] === context.aio.name) throw new BlockError(Errno.EIO, 'Could not open: not in this thread');
    if (options['ends-in'] === context.aio.name) process.exit(3);
    return new FussyNode(file);
  },
};

export default driver;
