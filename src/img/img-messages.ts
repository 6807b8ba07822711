/** What is asked of the thread that works on images (img-thread.ts), and what it tells. All of it is cloned. */
import type { Bytes, Offset } from '../base/units.ts';
import type { ImageInfo } from '../lib/inspect.ts';
import type { ObjectOptions } from '../lib/objects/types.ts';
import type { BenchOptions } from './bench.ts';
import type { BitmapHow } from './bitmap.ts';
import type { CommitOptions } from './commit.ts';
import type { CompareOptions, Comparison } from './compare.ts';
import type { ConvertOptions } from './convert.ts';
import type { CopyPartOptions } from './dd.ts';
import type { MapExtent } from './map.ts';
import type { Measurement } from './measure.ts';
import type { ImageSpec, OpenHow } from './open.ts';
import type { RebaseOptions } from './rebase.ts';
import type { ResizeHow } from './resize.ts';

/** With every call. */
export interface Run {
  /** Number of the operation, for what it tells meanwhile. */
  readonly run: number;
  readonly objects?: readonly ObjectOptions[] | undefined;
}

/** How an image is opened, without what cannot be cloned. */
export type PlainHow = Pick<OpenHow, 'cache' | 'discard' | 'forceShare' | 'snapshot' | 'shareWrites'>;

/** Options of a new image: its format and what `driverOptions` makes of ImageOptions. */
export interface Creation {
  readonly format: string;
  readonly options: Readonly<Record<string, unknown>>;
}

/** Options with the functions among them left out. */
type Plain<T, Functions extends keyof T> = Omit<T, 'signal' | 'onProgress' | 'how' | Functions>;

export interface ConvertCall
  extends Plain<ConvertOptions, 'create' | 'salvage' | 'bitmaps' | 'sourceHow' | 'targetHow'> {
  readonly sourceHow: PlainHow;
  readonly targetHow: PlainHow;
  readonly create: Creation | undefined;
  readonly salvage: boolean;
  /** `skip`: one that is broken is told of. */
  readonly bitmaps: 'all' | 'skip' | undefined;
}

export interface DdCall extends Plain<CopyPartOptions, 'onBeyond' | 'sourceHow' | 'target'> {
  readonly sourceHow: PlainHow;
  readonly target: string;
  readonly create: Creation;
}

/** How an image of the one that is changed or looked at is opened. */
interface WithHow {
  readonly how: PlainHow;
}

interface WithImage extends WithHow {
  readonly image: ImageSpec;
}

/** Method of the thread: what it is given, and what it answers. */
export interface ImgCalls {
  info(args: WithImage): ImageInfo;
  chain(args: WithImage): ImageInfo[];
  convert(args: ConvertCall): void;
  /** At most `most` extents from `start` on; fewer are the last. */
  map(args: WithImage & { start: Offset; length: Bytes | undefined; most: number }): MapExtent[];
  compare(args: Plain<CompareOptions, 'onOtherSize'> & WithHow): Comparison;
  resize(args: WithImage & Pick<ResizeHow, 'bytes' | 'sign' | 'shrink' | 'preallocation'>): Bytes;
  snapshot(args: WithImage & { action: 'create' | 'apply' | 'delete'; which: string }): void;
  rebase(args: Plain<RebaseOptions, never> & WithHow): void;
  commit(args: Plain<CommitOptions, never> & WithHow): void;
  measure(args: WithHow & { image: ImageSpec | undefined; create: Creation }): Measurement;
  dd(args: DdCall): void;
  bitmap(args: WithImage & Pick<BitmapHow, 'actions' | 'granularity' | 'from'> & { name: string }): void;
  amend(args: WithImage & { changes: Readonly<Record<string, unknown>> }): void;
  bench(args: Plain<BenchOptions, 'onStart'> & WithHow): number;
}

export type ImgMethod = keyof ImgCalls;
export type ImgArgs<M extends ImgMethod> = Parameters<ImgCalls[M]>[0];
export type ImgResult<M extends ImgMethod> = ReturnType<ImgCalls[M]>;

/** What the thread tells of an operation; the name of the event is the kind. */
export interface ImgEvents {
  progress: { readonly run: number; readonly current: Bytes; readonly total: Bytes };
  /** What could not be read is zeroes in the copy. */
  salvaged: { readonly run: number; readonly at: Offset; readonly errno: number };
  'broken-bitmap': { readonly run: number; readonly name: string };
}
