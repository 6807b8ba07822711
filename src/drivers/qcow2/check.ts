/**
 * Looking for damage in an image, and repairing it. The counts are those of `qemu-img check`; docs/QCOW2.md, "Check",
 * says where a repair goes another way.
 */
import type { AioContext } from '../../aio/context.ts';
import { BlockError, Errno } from '../../base/errors.ts';
import type { CheckFix, CheckResult, Child, CreateContext } from '../../block/driver.ts';
import type { Qcow2Header } from '../../proto/qcow2/header.ts';
import { fixCopied, fixRefcounts, markClean, mendEntries, rebuild } from './check-repair.ts';
import type { Report } from './check-report.ts';
import { Scan } from './check-scan.ts';
import { MetadataIo, readHeader } from './metadata-io.ts';

/** What is looked at: no request is in flight on it, and nothing of it is cached and dirty. */
export interface CheckTarget {
  readonly aio: AioContext;
  readonly file: Child;
  /** Changed where a repair changes it. */
  readonly header: Qcow2Header;
  readonly readOnly: boolean;
}

/** Any number of snapshots, for a repair to cut down. */
const SNAPSHOTS_ANY = 0xffff_ffff;

/** Checks an image that is not open, and may not open for what is to be repaired. Only its header has to be right. */
export async function checkFile({ aio, file }: CreateContext, fix: CheckFix): Promise<CheckResult> {
  const header = await readHeader(new MetadataIo(aio, file), SNAPSHOTS_ANY);
  return checkImage({ aio, file, header, readOnly: fix === 'none' }, fix);
}

/**
 * EPERM for a repair of what is read-only, EFBIG for what cannot be kept in memory, and errors of the file where a
 * repair meets them. Where there is nothing to repair, the marks of a damaged image go away.
 */
export async function checkImage(target: CheckTarget, fix: CheckFix): Promise<CheckResult> {
  if (fix !== 'none' && target.readOnly) {
    throw new BlockError(Errno.EPERM, 'Could not repair the image: it is open read-only');
  }
  const first = await new Scan(target).run();
  if (fix === 'none') return resultOf(target, first.report);
  if (!first.report.clean) return repair(target, first, fix);
  await markClean(target);
  return resultOf(target, first.report);
}

function resultOf({ header }: CheckTarget, report: Report, earlier: readonly string[] = []): CheckResult {
  return report.result(header.size, 2 ** header.clusterBits, earlier);
}

async function repair(target: CheckTarget, first: Scan, fix: CheckFix): Promise<CheckResult> {
  const { messages } = first.report;
  let scan = first;
  let mended = 0;
  if (fix === 'all' && first.report.unread === 0 && first.report.mendable > 0) {
    mended = await mendEntries(first);
    scan = await new Scan(target).run();
  }
  const { errors, leaks, end, refcountsBroken, snapshotsBroken } = scan.report;
  const obstacle = obstacleTo(scan.report, fix);
  if (obstacle !== undefined) return resultOf(target, scan.report, [`Nothing was repaired: ${obstacle}`]);
  let copied = 0;
  if (refcountsBroken || snapshotsBroken) scan = await rebuild(target, end, snapshotsBroken);
  else await fixRefcounts(target, scan, fix);
  // With refcounts that are too low, the flags cannot be told right from wrong.
  if (fix === 'all' || errors === 0) copied = await fixCopied(target, scan);
  const { report } = await new Scan(target).run();
  const left = report.errors + report.copied;
  if (left + report.unread === 0) await markClean(target);
  return {
    ...resultOf(target, report, [...messages, ...(report.clean ? [] : ['Not repaired:'])]),
    corruptionsFixed: Math.max(0, mended + errors + copied - left),
    leaksFixed: Math.max(0, leaks - report.leaks),
  };
}

/** Why nothing can be repaired, if so. */
function obstacleTo(report: Report, fix: CheckFix): string | undefined {
  if (report.unread > 0) return 'what could not be read may refer to any cluster';
  if (fix === 'all') return undefined;
  if (report.refcountsBroken) return "the refcount table must be written anew, which takes a repair of 'all'";
  if (report.snapshotsBroken) return "the snapshot table must be written anew, which takes a repair of 'all'";
  return undefined;
}
