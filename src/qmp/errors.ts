/** Errors as a monitor answers them. */
import { BlockError } from '../base/errors.ts';

export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound' | 'KVMMissingCap';

/** What a client asked for cannot be; the message is for people, the class for programs. */
export class QmpError extends Error {
  override readonly name = 'QmpError';
  readonly errorClass: QmpErrorClass;

  constructor(message: string, errorClass: QmpErrorClass = 'GenericError', cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.errorClass = errorClass;
  }

  /** Where an operation has failed, with which errno: 'ENOSPC'. */
  get code(): string | undefined {
    return this.cause instanceof BlockError ? this.cause.code : undefined;
  }
}

/** What a client is told of `error`; undefined for our own mistakes, which are not for it to know. */
export function qmpError(error: unknown): QmpError | undefined {
  if (error instanceof QmpError) return error;
  return error instanceof BlockError ? new QmpError(error.message, 'GenericError', error) : undefined;
}
