/** Names of backing files. */
import { dirname, isAbsolute } from 'node:path';

/** Where the backing file that an image names is: a relative name begins at the image. */
export function backingPath(image: string, name: string): string {
  if (isAbsolute(name) || hasProtocol(name)) return name;
  const directory = dirname(image);
  return directory === '.' && !image.startsWith('./')
    ? name
    : `${directory}${directory.endsWith('/') ? '' : '/'}${name}`;
}

/** True for 'nbd://host/x' or 'json:...'; a colon behind a slash is part of a path. */
export function hasProtocol(name: string): boolean {
  return /^[^/:]+:/.test(name);
}
