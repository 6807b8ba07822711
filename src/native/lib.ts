/**
 * The only door to foreign functions. koffi is loaded on first use, once a thread; where it, Linux or a processor we
 * know is missing, {@link native} is undefined and everything else in this folder throws ENOSYS.
 *
 * All calls are synchronous. libc functions report failure as -1 and errno: {@link check} turns that into the negative
 * errno that the rest of the engine speaks. Pointers are numbers, since user addresses stay below 2^53.
 */
import { createRequire } from 'node:module';
import { assert } from '../base/assert.ts';
import { BlockError, Errno } from '../base/errors.ts';
import type { Memory } from '../base/memory.ts';

type Koffi = typeof import('koffi');
export type Library = import('koffi').LibraryHandle;

/** The libc functions in use. They return what C returns: -1 on failure, with the reason in errno. */
export interface Libc {
  syscall(number: number, a: number, b: number, c: number, d: number, e: number, f: number): number;
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  read(fd: number, address: number, length: number): number;
  write(fd: number, address: number, length: number): number;
  lseek(fd: number, offset: number, whence: number): number;
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  ftruncate(fd: number, length: number): number;
  fsync(fd: number): number;
  fdatasync(fd: number): number;
  ioctl(fd: number, request: number, argument: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  poll(fds: number, count: number, timeoutMs: number): number;
  eventfd(initial: number, flags: number): number;
  mmap(address: number, length: number, protection: number, flags: number, fd: number, offset: number): number;
  munmap(address: number, length: number): number;
  madvise(address: number, length: number, advice: number): number;
  socket(family: number, type: number, protocol: number): number;
  socketpair(family: number, type: number, protocol: number, pair: number): number;
  bind(fd: number, address: number, length: number): number;
  listen(fd: number, backlog: number): number;
  connect(fd: number, address: number, length: number): number;
  accept4(fd: number, address: number, length: number, flags: number): number;
  getsockname(fd: number, address: number, length: number): number;
  getpeername(fd: number, address: number, length: number): number;
  setsockopt(fd: number, level: number, option: number, value: number, length: number): number;
  getsockopt(fd: number, level: number, option: number, value: number, length: number): number;
  shutdown(fd: number, how: number): number;
  sendmsg(fd: number, message: number, flags: number): number;
  recvmsg(fd: number, message: number, flags: number): number;
}

const POINTER = 'uintptr_t';
const WORD = 'intptr_t';

/** Result and parameter types, in the words of koffi. Variadic functions take their arguments like all others in the
 *  Linux calling conventions of x64 and arm64, so they can be declared with the arguments we pass. */
const SIGNATURES: Readonly<Record<keyof Libc, readonly [result: string, ...parameters: string[]]>> = {
  syscall: [WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD],
  open: ['int', 'str', 'int', 'uint'],
  close: ['int', 'int'],
  read: [WORD, 'int', POINTER, 'size_t'],
  write: [WORD, 'int', POINTER, 'size_t'],
  lseek: ['int64_t', 'int', 'int64_t', 'int'],
  fallocate: ['int', 'int', 'int', 'int64_t', 'int64_t'],
  ftruncate: ['int', 'int', 'int64_t'],
  fsync: ['int', 'int'],
  fdatasync: ['int', 'int'],
  ioctl: ['int', 'int', POINTER, POINTER],
  fcntl: ['int', 'int', 'int', POINTER],
  poll: ['int', POINTER, 'ulong', 'int'],
  eventfd: ['int', 'uint', 'int'],
  mmap: [WORD, POINTER, 'size_t', 'int', 'int', 'int', 'int64_t'],
  munmap: ['int', POINTER, 'size_t'],
  madvise: ['int', POINTER, 'size_t', 'int'],
  socket: ['int', 'int', 'int', 'int'],
  socketpair: ['int', 'int', 'int', 'int', POINTER],
  bind: ['int', 'int', POINTER, 'uint'],
  listen: ['int', 'int', 'int'],
  connect: ['int', 'int', POINTER, 'uint'],
  accept4: ['int', 'int', POINTER, POINTER, 'int'],
  getsockname: ['int', 'int', POINTER, POINTER],
  getpeername: ['int', 'int', POINTER, POINTER],
  setsockopt: ['int', 'int', 'int', 'int', POINTER, 'uint'],
  getsockopt: ['int', 'int', 'int', 'int', POINTER, POINTER],
  shutdown: ['int', 'int', 'int'],
  sendmsg: [WORD, 'int', POINTER, 'int'],
  recvmsg: [WORD, 'int', POINTER, 'int'],
};

export interface Native {
  readonly koffi: Koffi;
  /** The process itself: libc, and what the node binary exports (libuv, V8). */
  readonly library: Library;
  readonly libc: Libc;
  readonly arch: 'x64' | 'arm64';
  /** Room for the structures of one call. It is free between calls: nothing here calls back or suspends. */
  readonly scratch: Memory;
}

export const SCRATCH_BYTES = 4096;
/** koffi aborts the process on longer views; longer regions are seen through windows. */
export const MAX_VIEW_BYTES = 4 * 1024 ** 3;

let current: Native | undefined;
let absence: string | undefined;
/** Addresses of the buffers that {@link viewOf} made: koffi cannot tell them from buffers that may move. */
const nativeBuffers = new WeakMap<ArrayBufferLike, number>();

/** The native layer of this thread, undefined where there is none: then {@link nativeAbsence} says why. Never
 *  throws. */
export function native(): Native | undefined {
  if (current === undefined && absence === undefined) {
    const loaded = load();
    if (typeof loaded === 'string') absence = loaded;
    else current = loaded;
  }
  return current;
}

/** Why {@link native} is undefined; undefined when it is not. */
export function nativeAbsence(): string | undefined {
  native();
  return absence;
}

/** The native layer, or BlockError ENOSYS "Could not `what`: why". */
export function requireNative(what: string): Native {
  const found = native();
  if (!found) throw new BlockError(Errno.ENOSYS, `Could not ${what}: ${absence}`);
  return found;
}

export function libc(): Libc {
  return (current ?? requireNative('call into the operating system')).libc;
}

export function scratch(): Memory {
  return (current ?? requireNative('call into the operating system')).scratch;
}

/** `result` of a libc call, or the negative errno when it is -1. Must directly follow the call. */
export function check(result: number): number {
  return result === -1 ? -current!.koffi.errno() : result;
}

/** A library of the system, which uses its own functions even where the process exports others of the same name. Throws
 *  where there is none, or the C library cannot do that: only glibc can. */
export function systemLibrary(name: string): Library {
  const { koffi, library } = requireNative(`load ${name}`);
  library.func('gnu_get_libc_version', 'str', []);
  return koffi.load(name, { deep: true });
}

/** The address of the first byte of `view`, which must be on a SharedArrayBuffer or come from {@link viewOf}: other
 *  buffers may move or be collected while only their address is known. Keep a reference to `view` as long as the
 *  address is in use. */
export function addressOf(view: Uint8Array): number {
  const base = nativeBuffers.get(view.buffer);
  if (base !== undefined) return base + view.byteOffset;
  assert(view.buffer instanceof SharedArrayBuffer, 'only shared or native memory has a lasting address');
  const { koffi } = requireNative('take the address of memory');
  return view.byteLength === 0 ? 0 : Number(koffi.address(view));
}

/** An ArrayBuffer over `length` bytes (1..4 GiB) of mapped memory. It cannot be detached: never unmap under it. */
export function viewOf(address: number, length: number): ArrayBuffer {
  assert(Number.isSafeInteger(address) && address > 0, `bad address ${address}`);
  assert(Number.isSafeInteger(length) && length > 0 && length <= MAX_VIEW_BYTES, `bad view length ${length}`);
  const buffer = requireNative('view native memory').koffi.view(BigInt(address), length);
  nativeBuffers.set(buffer, address);
  return buffer;
}

function load(): Native | string {
  if (process.env.BLOCKPLANE_NATIVE === 'off') return 'BLOCKPLANE_NATIVE=off is set';
  if (process.platform !== 'linux') return `there is no native layer for ${process.platform}`;
  const arch = process.arch;
  if (arch !== 'x64' && arch !== 'arm64') return `there is no native layer for ${arch} processors`;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi;
    const library = koffi.load(null);
    const bytes = new Uint8Array(new SharedArrayBuffer(SCRATCH_BYTES));
    const address = Number(koffi.address(bytes));
    return {
      koffi,
      library,
      libc: declare(library),
      arch,
      scratch: { bytes, view: new DataView(bytes.buffer), address },
    };
  } catch (error) {
    return `koffi cannot be used here (${firstLine(error)})`;
  }
}

function declare(library: Library): Libc {
  const functions: Partial<Record<keyof Libc, unknown>> = {};
  for (const [name, [result, ...parameters]] of Object.entries(SIGNATURES)) {
    functions[name as keyof Libc] = library.func(name, result, parameters);
  }
  return functions as unknown as Libc;
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n', 1)[0]!;
}
