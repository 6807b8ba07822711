/** Calls of node:fs as promises. node:fs/promises has them, too, and takes as long to load as to look at an image. */
import * as fs from 'node:fs';
import { promisify } from 'node:util';

export const open = promisify(fs.open);
export const close = promisify(fs.close);
export const read = promisify(fs.read);
export const fstat = promisify(fs.fstat);
export const lstat = promisify(fs.lstat);
export const readlink = promisify(fs.readlink);
export const realpath = promisify(fs.realpath.native);
