/** What is wrong with the header of a qcow2 image, in the words of qemu-img. */
import type { Reason } from './messages.ts';

const plain = (pattern: RegExp, text: string): Reason => [pattern, () => text];

export const HEADER_REASONS: readonly Reason[] = [
  plain(/^it is not in qcow2 format$/, 'Image is not in qcow2 format'),
  plain(/^the header is cut off after/, 'qcow2 header too short'),
  [/^qcow2 version (\d+) is not supported$/, ([, version]) => `Unsupported qcow2 version ${version}`],
  [/^cluster_bits is (\d+); it must be/, ([, bits]) => `Unsupported cluster size: 2^${bits}`],
  [
    /^header_length is (\d+);/,
    ([, length]) => (Number(length) > HEADER_MAX ? 'qcow2 header exceeds cluster size' : 'qcow2 header too short'),
  ],
  [
    /^it needs features that are not supported \(incompatible_features\): (.*)$/s,
    ([, names]) => `Unsupported qcow2 feature(s): ${names!.replaceAll('feature: 0x', 'feature: ')}`,
  ],
  plain(/^backing_file_offset/, 'Invalid backing file offset'),
  plain(/^backing_file_size/, 'Backing file name too long'),
  plain(/^l1_size \d+ is too large/, 'Active L1 table too large'),
  plain(/^(l1_size \d+ is too small|size is 2\^53 or more)/, 'L1 table is too small'),
  plain(/^l1_table_offset/, 'Active L1 table offset invalid'),
  plain(/^refcount_table_offset/, 'Reference count table offset invalid'),
  plain(/^refcount_table_clusters is 0/, 'Image does not contain a reference count table'),
  plain(/^refcount_table_clusters/, 'Reference count table too large'),
  plain(/^nb_snapshots/, 'Snapshot table too large'),
  plain(/^snapshots_offset/, 'Snapshot table offset invalid'),
  plain(/^refcount_order/, 'Reference count entry width too large; may not exceed 64 bits'),
  // The original's number has a sign.
  [/^crypt_method (\d+) is not supported$/, ([, method]) => `Unsupported encryption method ${Number(method) | 0}`],
  [/^compression_type (\d+) is not supported$/, ([, type]) => `qcow2: unknown compression type: ${type}`],
  [
    /^compression_type is \d+, and its bit in incompatible_features is (not )?set$/,
    ([, not]) => `qcow2: Compression type incompatible feature bit must ${not === undefined ? 'not ' : ''}be set`,
  ],
];

/** The largest cluster. */
const HEADER_MAX = 2 * 1024 * 1024;
