import type { ObjectStore } from '../../lib/objects/store.ts';
import { Failure, type NbdOptions } from './options.ts';

export async function list(_options: NbdOptions, _objects: ObjectStore | undefined): Promise<number> {
  throw new Failure('-L');
}
