/**
 * The filter that a job has over a disk and that changes nothing of what goes through: it has a name, and it keeps
 * apart who comes through it and who comes past it. Nobody can ask for it by name, so it is no driver of src/drivers.
 */
import type { Bytes, Offset } from '../base/units.ts';
import type { Child, Driver, DriverNode, Mapping, MapReason } from '../block/driver.ts';

class PassFilterNode implements DriverNode {
  readonly #shown: Child;

  constructor(shown: Child) {
    this.#shown = shown;
  }

  get length(): Bytes {
    return this.#shown.length;
  }

  map(at: Offset, want: Bytes, _why: MapReason, out: Mapping): void {
    out.data(want, this.#shown, at);
  }

  grew(_end: Offset): void {}
}

/** `child`: what it calls the disk that it shows. `spares`: see {@link Driver.spares}. */
export function passFilter(name: string, child: string, spares = 0): Driver {
  return {
    name,
    role: 'filter',
    children: { [child]: 'filtered' },
    options: {},
    spares,
    async open(context): Promise<DriverNode> {
      return new PassFilterNode((await context.openChild(child, 'filtered'))!);
    },
  };
}
