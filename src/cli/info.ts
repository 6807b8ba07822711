/** `blockplane info`: what an image says of itself, by the names that qemu-img has for it. */
import { dirname, isAbsolute, join } from 'node:path';
import { type ImageInfo, inspect, type Qcow2Info } from '../lib/inspect.ts';
import { formatOption, httpOption, oneOf } from './image-args.ts';
import { sizeText } from './report.ts';
import { snapshotJson, snapshotTable } from './snapshot-list.ts';
import type { RawInfoOptions } from './verbs.ts';

export async function info(path: string, raw: RawInfoOptions): Promise<void> {
  const output = oneOf(raw.output, ['human', 'json'] as const, '--output');
  const image = await inspect(path, { format: formatOption(raw.format), http: httpOption(raw.httpOpts) });
  process.stdout.write(output === 'json' ? `${JSON.stringify(infoJson(image), null, 4)}\n` : infoText(image));
}

/** Where a backing file would be; null as far as no path can be made of its name. */
function fullBackingName(path: string, name: string): string {
  return isAbsolute(name) || /^[^/]*:/.test(name) ? name : join(dirname(path), name);
}

function infoJson(image: ImageInfo): Record<string, unknown> {
  const { qcow2 } = image;
  return {
    'virtual-size': image.virtualSize,
    filename: image.filename,
    format: image.format,
    ...(image.allocatedSize === null ? {} : { 'actual-size': image.allocatedSize }),
    ...(qcow2 ? qcow2Json(image.filename, qcow2) : {}),
  };
}

function qcow2Json(path: string, qcow2: Qcow2Info): Record<string, unknown> {
  const { backingFile, backingFormat, snapshots, encryption } = qcow2;
  return {
    'cluster-size': qcow2.clusterSize,
    ...(encryption ? { encrypted: true } : {}),
    ...(backingFile === null
      ? {}
      : { 'backing-filename': backingFile, 'full-backing-filename': fullBackingName(path, backingFile) }),
    ...(backingFormat === null ? {} : { 'backing-filename-format': backingFormat }),
    'dirty-flag': qcow2.dirty,
    ...(snapshots.length > 0 ? { snapshots: snapshots.map(snapshotJson) } : {}),
    'format-specific': { type: 'qcow2', data: specificJson(qcow2) },
  };
}

function specificJson(qcow2: Qcow2Info): Record<string, unknown> {
  const { compat, bitmaps, dataFile } = qcow2;
  const shared = { compat, 'compression-type': qcow2.compressionType };
  const encrypt = encryptionJson(qcow2);
  if (compat === '0.10') return { ...shared, 'refcount-bits': qcow2.refcountBits, ...encrypt };
  return {
    ...shared,
    'lazy-refcounts': qcow2.lazyRefcounts,
    'refcount-bits': qcow2.refcountBits,
    corrupt: qcow2.corrupt,
    'extended-l2': qcow2.extendedL2,
    ...(dataFile === null ? {} : { 'data-file': dataFile, 'data-file-raw': qcow2.dataFileRaw }),
    ...(bitmaps.length === 0
      ? {}
      : {
          bitmaps: bitmaps.map(({ name, granularity, inUse, auto }) => ({
            flags: [...(inUse ? ['in-use'] : []), ...(auto ? ['auto'] : [])],
            name,
            granularity,
          })),
        }),
    ...(qcow2.bitmapDamage === null ? {} : { 'bitmaps-damaged': qcow2.bitmapDamage }),
    ...encrypt,
  };
}

function encryptionJson({ encryption, luks, luksDamage }: Qcow2Info): Record<string, unknown> {
  if (encryption === null) return {};
  if (luks === null)
    return { encrypt: { format: encryption, ...(luksDamage === null ? {} : { damaged: luksDamage }) } };
  const slots = luks.slots.map(({ active, keyOffset }) => ({
    active: active !== null,
    ...(active ? { iters: active.iterations } : {}),
    'key-offset': keyOffset,
    ...(active ? { stripes: active.stripes } : {}),
  }));
  return {
    encrypt: {
      'ivgen-alg': luks.ivgen,
      'hash-alg': luks.hash,
      'cipher-alg': luks.cipher,
      uuid: luks.uuid,
      ...(luks.ivgenHash === null ? {} : { 'ivgen-hash-alg': luks.ivgenHash }),
      format: encryption,
      'cipher-mode': luks.mode,
      slots,
      'payload-offset': luks.payloadOffset,
      'master-key-iters': luks.masterKeyIterations,
    },
  };
}

function infoText(image: ImageInfo): string {
  const { qcow2, virtualSize } = image;
  const lines = [`image: ${printable(image.filename)}`, `file format: ${image.format}`];
  if (virtualSize !== null) lines.push(`virtual size: ${sizeText(virtualSize)} (${virtualSize} bytes)`);
  lines.push(`disk size: ${image.allocatedSize === null ? 'unavailable' : sizeText(image.allocatedSize)}`);
  if (qcow2) lines.push(...qcow2Lines(image.filename, qcow2));
  return `${lines.join('\n')}\n`;
}

function qcow2Lines(path: string, qcow2: Qcow2Info): string[] {
  const { backingFile, backingFormat, dataFile, bitmaps, encryption } = qcow2;
  const lines = [`cluster_size: ${qcow2.clusterSize}`];
  if (encryption) lines.push(`encrypted: yes (${encryption})`);
  if (qcow2.dirty) lines.push('cleanly shut down: no');
  if (backingFile !== null) {
    const full = fullBackingName(path, backingFile);
    lines.push(
      `backing file: ${printable(backingFile)}${full === backingFile ? '' : ` (would be: ${printable(full)})`}`,
    );
  }
  if (backingFormat !== null) lines.push(`backing file format: ${printable(backingFormat)}`);
  if (qcow2.snapshots.length > 0) lines.push('Snapshot list:', snapshotTable(qcow2.snapshots).trimEnd());
  lines.push('Format specific information:', `    compat: ${qcow2.compat}`);
  lines.push(`    compression type: ${qcow2.compressionType}`, `    refcount bits: ${qcow2.refcountBits}`);
  if (qcow2.compat !== '0.10') {
    lines.push(`    lazy refcounts: ${qcow2.lazyRefcounts}`, `    corrupt: ${qcow2.corrupt}`);
    lines.push(`    extended l2: ${qcow2.extendedL2}`);
  }
  lines.push(...encryptionLines(qcow2));
  if (dataFile !== null) lines.push(`    data file: ${printable(dataFile)}`, `    data file raw: ${qcow2.dataFileRaw}`);
  for (const { name, granularity, inUse, auto } of bitmaps) {
    const flags = [inUse ? 'in-use' : '', auto ? 'auto' : ''].filter((flag) => flag !== '');
    lines.push(
      `    bitmap: ${printable(name)} (granularity ${granularity}${flags.length > 0 ? `, ${flags.join(', ')}` : ''})`,
    );
  }
  if (qcow2.bitmapDamage !== null) lines.push(`    bitmaps: damaged (${printable(qcow2.bitmapDamage)})`);
  return lines;
}

function encryptionLines({ encryption, luks, luksDamage }: Qcow2Info): string[] {
  if (encryption === null) return [];
  const lines = ['encrypt:', `    format: ${encryption}`];
  if (luksDamage !== null) lines.push(`    damaged: ${printable(luksDamage)}`);
  if (luks !== null) {
    lines.push(`    cipher alg: ${luks.cipher}`, `    cipher mode: ${luks.mode}`, `    ivgen alg: ${luks.ivgen}`);
    if (luks.ivgenHash !== null) lines.push(`    ivgen hash alg: ${luks.ivgenHash}`);
    lines.push(`    hash alg: ${luks.hash}`, `    uuid: ${printable(luks.uuid)}`);
    lines.push(`    payload offset: ${luks.payloadOffset}`, `    master key iters: ${luks.masterKeyIterations}`);
    luks.slots.forEach(({ active, keyOffset }, i) => {
      const state = active ? `active, iters ${active.iterations}, stripes ${active.stripes}` : 'not in use';
      lines.push(`    slot ${i}: ${state}, key offset ${keyOffset}`);
    });
  }
  return lines.map((line) => `    ${line}`);
}

/** A name out of an image must not move the cursor of a terminal. */
function printable(name: string): string {
  return name.replace(/\p{C}/gu, '?');
}
