/** The names of features (specification: "Feature name table"). */
import { ExtensionType } from './constants.ts';
import type { Qcow2Header } from './header.ts';
import { extension } from './header-extensions.ts';
import { decodeName, encodeName } from './text.ts';

export type FeatureKind = 'incompatible' | 'compatible' | 'autoclear';

/** Kind, bit, and a name padded with NULs. */
const ENTRY_BYTES = 48;
const KINDS: readonly FeatureKind[] = ['incompatible', 'compatible', 'autoclear'];

/** By kind and bit. */
const NAMES: Readonly<Record<FeatureKind, readonly string[]>> = {
  incompatible: ['dirty bit', 'corrupt bit', 'external data file', 'compression type', 'extended L2 entries'],
  compatible: ['lazy refcounts'],
  autoclear: ['bitmaps', 'raw external data'],
};

/** The data of the extension, with every feature that we know. */
export function defaultFeatureNames(): Uint8Array {
  const entries = KINDS.flatMap((kind, number) => NAMES[kind].map((name, bit) => [number, bit, name] as const));
  const bytes = new Uint8Array(entries.length * ENTRY_BYTES);
  entries.forEach(([number, bit, name], i) => {
    bytes.set([number, bit, ...encodeName(name)], i * ENTRY_BYTES);
  });
  return bytes;
}

/** What a feature is called: our name where we know it, else the image's. Undefined where neither has one. */
export function featureName(
  header: Pick<Qcow2Header, 'extensions'>,
  kind: FeatureKind,
  bit: number,
): string | undefined {
  const known = NAMES[kind][bit];
  if (known !== undefined) return known;
  const table = extension(header, ExtensionType.FEATURE_NAMES) ?? new Uint8Array(0);
  for (let at = 0; at + ENTRY_BYTES <= table.length; at += ENTRY_BYTES) {
    if (table[at] !== KINDS.indexOf(kind) || table[at + 1] !== bit) continue;
    const name = table.subarray(at + 2, at + ENTRY_BYTES);
    const end = name.indexOf(0);
    // It goes into messages, and onto terminals.
    const text = decodeName(end < 0 ? name : name.subarray(0, end)).replace(/\p{C}/gu, '?');
    if (text !== '') return text;
  }
  return undefined;
}
