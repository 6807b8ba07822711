/** What the kernel offers, found out by asking it: a kernel version proves nothing under seccomp, sysctls and
 *  backports. */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { Errno, errnoName, errnoText } from '../base/errors.ts';
import { close } from './file.ts';
import { native, nativeAbsence, scratch } from './lib.ts';
import { ioUringRegister, ioUringSetup } from './syscall.ts';

export interface IoUringFlags {
  /** Set-up flags (io_uring_setup(2)). */
  readonly singleIssuer: boolean;
  readonly deferTaskrun: boolean;
  readonly coopTaskrun: boolean;
  readonly submitAll: boolean;
  readonly noSqArray: boolean;
  /** Feature bits: a timeout within enter; completions are never dropped; one mapping for both rings; SQE data is
   *  read at submission; sockets and pipes are polled without a worker thread. */
  readonly extArg: boolean;
  readonly noDrop: boolean;
  readonly singleMmap: boolean;
  readonly submitStable: boolean;
  readonly fastPoll: boolean;
  /** Operations. */
  readonly fallocate: boolean;
  readonly msgRing: boolean;
  readonly sendZc: boolean;
  readonly ftruncate: boolean;
}

export interface IoUringProbe {
  readonly available: boolean;
  /** Why not, for a person; absent when available. */
  readonly reason?: string;
  /** IORING_FEAT_* bits; 0 when not available. */
  readonly features: number;
  /** Numbers of the IORING_OP_* that this kernel does. */
  readonly ops: ReadonlySet<number>;
  /** Kernel release, as uname -r says. */
  readonly kernel: string;
  readonly flags: IoUringFlags;
}

const SETUP = {
  submitAll: 1 << 7,
  coopTaskrun: 1 << 8,
  singleIssuer: 1 << 12,
  /** Only together with singleIssuer. */
  deferTaskrun: (1 << 13) | (1 << 12),
  noSqArray: 1 << 16,
} as const;
const FEATURE = { singleMmap: 1 << 0, noDrop: 1 << 1, submitStable: 1 << 2, fastPoll: 1 << 5, extArg: 1 << 8 } as const;
const OP = { fallocate: 17, msgRing: 40, sendZc: 47, ftruncate: 55 } as const;

const PARAMS_BYTES = 120;
const PARAMS_FLAGS = 8;
const PARAMS_FEATURES = 20;
const REGISTER_PROBE = 8;
const PROBE_OPS = 256;
const OP_SUPPORTED = 1;

let known: IoUringProbe | undefined;

/** What io_uring can do here. Sets up a few small rings and closes them; asked once a thread. Never throws. */
export function probeIoUring(): IoUringProbe {
  known ??= probe();
  return known;
}

function probe(): IoUringProbe {
  const absence = nativeAbsence();
  if (absence !== undefined) return refused(absence);
  const fd = setUp(0);
  if (fd < 0) return refused(ioUringRefusal(fd, sysctl()));
  const features = scratch().view.getUint32(PARAMS_FEATURES, true);
  const ops = probeOps(fd);
  close(fd);
  const has = <K extends string>(table: Readonly<Record<K, number>>, test: (value: number) => boolean) =>
    Object.fromEntries(Object.entries<number>(table).map(([name, value]) => [name, test(value)])) as Record<K, boolean>;
  const flags: IoUringFlags = {
    ...has(SETUP, accepts),
    ...has(FEATURE, (bit) => (features & bit) !== 0),
    ...has(OP, (op) => ops.has(op)),
  };
  return { available: true, features, ops, kernel: release(), flags };
}

function refused(reason: string): IoUringProbe {
  const names = [...Object.keys(SETUP), ...Object.keys(FEATURE), ...Object.keys(OP)];
  const flags = Object.fromEntries(names.map((name) => [name, false])) as unknown as IoUringFlags;
  return { available: false, reason, features: 0, ops: new Set(), kernel: release(), flags };
}

function setUp(flags: number): number {
  const { bytes, view, address } = scratch();
  bytes.fill(0, 0, PARAMS_BYTES);
  view.setUint32(PARAMS_FLAGS, flags, true);
  return ioUringSetup(2, address);
}

function accepts(flags: number): boolean {
  const fd = setUp(flags);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

function probeOps(fd: number): ReadonlySet<number> {
  const { bytes, view, address } = scratch();
  bytes.fill(0, 0, 16 + 8 * PROBE_OPS);
  const ops = new Set<number>();
  if (ioUringRegister(fd, REGISTER_PROBE, address, PROBE_OPS) < 0) return ops;
  const count = view.getUint8(1);
  for (let i = 0; i < count; i++) {
    const at = 16 + 8 * i;
    if ((view.getUint16(at + 2, true) & OP_SUPPORTED) !== 0) ops.add(view.getUint8(at));
  }
  return ops;
}

/** kernel.io_uring_disabled: 0 for all, 1 for members of a group, 2 for nobody; undefined on kernels before 6.6. */
function sysctl(): string | undefined {
  try {
    return readFileSync('/proc/sys/kernel/io_uring_disabled', 'latin1').trim();
  } catch {
    return undefined;
  }
}

/** A sentence for an errno of io_uring_setup and the value of the sysctl. */
export function ioUringRefusal(errno: number, disabled: string | undefined): string {
  switch (Math.abs(errno)) {
    case Errno.ENOSYS:
      return 'the kernel has no io_uring, or a seccomp filter hides it';
    case Errno.EPERM:
      if (disabled === '2') return 'io_uring is switched off (sysctl kernel.io_uring_disabled = 2)';
      if (disabled === '1') return 'io_uring is for a group of users only (sysctl kernel.io_uring_disabled = 1)';
      return 'io_uring is not permitted here (the seccomp filter of a container, as a rule)';
    case Errno.EACCES:
      return 'a security module refuses io_uring';
    case Errno.ENOMEM:
      return 'io_uring cannot lock memory (ulimit -l)';
    default:
      return `io_uring_setup failed with ${errnoName(errno)} (${errnoText(errno)})`;
  }
}

/** What the native layer is and can do, a line a fact, for a person. */
export function nativeReport(): string {
  const found = native();
  const ring = probeIoUring();
  const on = Object.entries(ring.flags).flatMap(([name, set]) => (set ? [name] : []));
  const lines = [
    `node      ${process.version} ${process.platform} ${process.arch}`,
    `kernel    ${ring.kernel}`,
    `koffi     ${found ? found.koffi.version : `absent: ${nativeAbsence()}`}`,
    `libc      ${libcVersion()}`,
    `io_uring  ${ring.available ? `${ring.ops.size} operations` : `absent: ${ring.reason}`}`,
  ];
  if (ring.available) lines.push(`features  0x${ring.features.toString(16)} ${on.join(' ')}`);
  return lines.join('\n');
}

function libcVersion(): string {
  const found = native();
  if (!found) return 'unknown';
  try {
    const version = found.library.func('gnu_get_libc_version', 'str', []) as unknown as () => string;
    return `glibc ${version()}`;
  } catch {
    return 'not glibc (musl, as a rule)';
  }
}
