import type { Bytes } from '../../base/units.ts';
import { decodeTableEntry, hexEntry, type InvalidEntry } from './image.ts';

interface RefcountTable {
  readonly table: Float64Array;
  /** The first entry that cannot be one; any such is 0 in the table. */
  readonly invalid: InvalidEntry | undefined;
}

/** Bytes of a refcount table on the disk as offsets. */
export function decodeRefcountTable(view: DataView, clusterSize: Bytes): RefcountTable {
  const table = new Float64Array(view.byteLength / 8);
  let invalid: InvalidEntry | undefined;
  for (let i = 0; i < table.length; i++) {
    const high = view.getUint32(i * 8);
    const low = view.getUint32(i * 8 + 4);
    if (high === 0 && low === 0) continue;
    const at = decodeTableEntry(high, low, clusterSize);
    if (at > 0) table[i] = at;
    else invalid ??= { index: i, value: hexEntry(high, low) };
  }
  return { table, invalid };
}
