/** What `qemu-img info` prints of an image. */
import { backingPath } from '../../img/backing.ts';
import type { ImageInfo, Qcow2Info } from '../../lib/inspect.ts';
import { shortSize } from './sizes.ts';
import { snapshotTable } from './snapshot-table.ts';

/** The names, and their order, of the original: its scripts compare texts. */
export function infoJson(image: ImageInfo): object {
  const { qcow2 } = image;
  return {
    'backing-filename-format': qcow2?.backingFormat ?? undefined,
    snapshots: qcow2 && qcow2.snapshots.length > 0 ? qcow2.snapshots.map(snapshotJson) : undefined,
    'virtual-size': image.virtualSize,
    filename: image.filename,
    'cluster-size': qcow2?.clusterSize,
    format: image.format,
    'actual-size': image.allocatedSize ?? undefined,
    'format-specific': qcow2 && { type: 'qcow2', data: specific(qcow2) },
    'full-backing-filename': qcow2?.backingFile == null ? undefined : backingPath(image.filename, qcow2.backingFile),
    'backing-filename': qcow2?.backingFile ?? undefined,
    encrypted: qcow2?.encryption ? true : undefined,
    'dirty-flag': qcow2?.dirty ?? false,
  };
}

function snapshotJson(snapshot: Qcow2Info['snapshots'][number]): object {
  return {
    icount: snapshot.icount,
    'vm-clock-nsec': snapshot.vmClockNanoseconds,
    name: snapshot.name,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.vmClockSeconds,
    id: snapshot.id,
    'vm-state-size': snapshot.vmStateSize,
  };
}

/** What only a format has; undefined members are left out. */
type Specific = { readonly [name: string]: Specific | readonly Specific[] | readonly string[] | Scalar };
type Scalar = string | number | boolean | undefined;

function specific(qcow2: Qcow2Info): Specific {
  const { compat, bitmaps } = qcow2;
  const modern = compat !== '0.10';
  const { dataFile } = qcow2;
  return {
    compat,
    'compression-type': qcow2.compressionType,
    'lazy-refcounts': modern ? qcow2.lazyRefcounts : undefined,
    bitmaps:
      bitmaps.length === 0
        ? undefined
        : bitmaps.map(({ name, granularity, inUse, auto }) => ({
            flags: [...(inUse ? ['in-use'] : []), ...(auto ? ['auto'] : [])],
            name,
            granularity,
          })),
    'refcount-bits': qcow2.refcountBits,
    encrypt: encryption(qcow2),
    'data-file': dataFile ?? undefined,
    'data-file-raw': dataFile === null ? undefined : qcow2.dataFileRaw,
    corrupt: modern ? qcow2.corrupt : undefined,
    'extended-l2': modern ? qcow2.extendedL2 : undefined,
  };
}

function encryption({ encryption: format, luks }: Qcow2Info): Specific | undefined {
  if (format === null) return undefined;
  if (luks === null) return { format };
  return {
    'ivgen-alg': luks.ivgen,
    'ivgen-hash-alg': luks.ivgenHash ?? undefined,
    'hash-alg': luks.hash,
    'cipher-alg': luks.cipher,
    uuid: luks.uuid,
    format,
    'cipher-mode': luks.mode,
    slots: luks.slots.map(({ active, keyOffset }) => ({
      active: active !== null,
      iters: active?.iterations,
      'key-offset': keyOffset,
      stripes: active?.stripes,
    })),
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.masterKeyIterations,
  };
}

export function infoText(image: ImageInfo): string {
  const { qcow2 } = image;
  const size = image.virtualSize ?? 0;
  const lines = [
    `image: ${image.filename}`,
    `file format: ${image.format}`,
    `virtual size: ${shortSize(size)} (${size} bytes)`,
    `disk size: ${image.allocatedSize === null ? 'unavailable' : shortSize(image.allocatedSize)}`,
  ];
  if (qcow2) lines.push(...qcow2Lines(image.filename, qcow2));
  return `${lines.join('\n')}\n`;
}

function qcow2Lines(path: string, qcow2: Qcow2Info): string[] {
  const { backingFile, snapshots } = qcow2;
  const lines: string[] = [];
  if (qcow2.encryption) lines.push('encrypted: yes');
  lines.push(`cluster_size: ${qcow2.clusterSize}`);
  if (qcow2.dirty) lines.push('cleanly shut down: no');
  if (backingFile !== null) {
    const full = backingPath(path, backingFile);
    lines.push(`backing file: ${backingFile}${full === backingFile ? '' : ` (actual path: ${full})`}`);
    if (qcow2.backingFormat !== null) lines.push(`backing file format: ${qcow2.backingFormat}`);
  }
  if (snapshots.length > 0) lines.push(`Snapshot list:\n${snapshotTable(snapshots)}`);
  return [...lines, ...specificLines(qcow2)];
}

/** What only the format has. */
export function specificLines(qcow2: Qcow2Info): string[] {
  return ['Format specific information:', ...tree(specific(qcow2), 1)];
}

/** Names with blanks, a level every four columns. */
function tree(value: Specific | readonly (Specific | Scalar)[], level: number): string[] {
  const list = Array.isArray(value);
  const indent = ' '.repeat(level * 4);
  return Object.entries(value).flatMap(([name, member]: [string, Specific[string]]) => {
    if (member === undefined) return [];
    const label = `${indent}${list ? `[${name}]` : name.replaceAll('-', ' ')}:`;
    return typeof member === 'object' ? [label, ...tree(member as Specific, level + 1)] : [`${label} ${member}`];
  });
}
