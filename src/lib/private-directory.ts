import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A directory that only its owner can look into (mode 0700), for a socket or a temporary image. */
export class PrivateDirectory {
  readonly path: string;

  constructor(parent = tmpdir()) {
    this.path = mkdtempSync(join(parent, 'blockplane-'));
  }

  /** With everything in it. Idempotent. */
  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
