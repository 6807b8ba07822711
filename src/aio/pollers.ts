/** The pollers of a context, asked one after the other. By index: an iterator would be an object for every turn. */
import type { Poller } from './backend.ts';

/** True when one of them had something to do. */
export function pollAll(pollers: readonly Poller[]): boolean {
  let progress = false;
  for (let i = 0; i < pollers.length; i++) if (pollers[i]!.poll()) progress = true;
  return progress;
}

export function anyReady(pollers: readonly Poller[]): boolean {
  for (let i = 0; i < pollers.length; i++) if (pollers[i]!.ready()) return true;
  return false;
}

/** True when something has come for one of them. */
export function armAll(pollers: readonly Poller[]): boolean {
  let come = false;
  for (let i = 0; i < pollers.length; i++) if (pollers[i]!.arm()) come = true;
  return come;
}
