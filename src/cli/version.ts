import { readFileSync } from 'node:fs';
import { PROGRAM } from './report.ts';

/** The package's version. */
export function packageVersion(): string {
  // Beside src or above dist: wherever the package begins.
  for (let at = new URL('.', import.meta.url), up = 0; up < 6; up++, at = new URL('..', at)) {
    try {
      const text = readFileSync(new URL('package.json', at), 'utf8');
      const { name, version } = JSON.parse(text) as { readonly name?: string; readonly version?: string };
      if (name === PROGRAM && version) return version;
    } catch {
      // Not here.
    }
  }
  return 'unknown';
}
