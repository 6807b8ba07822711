/** Stream sockets with names in the abstract namespace of Linux: Node.js would fill these up. Source: unix(7). */
import { close } from './file.ts';
import { nativeAbsence } from './lib.ts';
import { bind, connect, listen, socket } from './socket.ts';

const BACKLOG = 128;

/** A descriptor that listens on `name`, which begins with NUL, or is connected to who does; a negative errno; undefined
 *  where there are no foreign functions. */
export function abstractSocket(name: string, role: 'server' | 'client'): number | undefined {
  if (nativeAbsence() !== undefined) return undefined;
  const address = { kind: 'unix', path: name } as const;
  const fd = socket(address);
  if (fd < 0) return fd;
  let result = role === 'server' ? bind(fd, address) : connect(fd, address);
  if (result >= 0 && role === 'server') result = listen(fd, BACKLOG);
  if (result >= 0) return fd;
  close(fd);
  return result;
}
