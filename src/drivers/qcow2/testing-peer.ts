/** For tests: qemu-img, many times in one folder. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';

const END = /\n--- ended with (\d+)\n$/;

export interface PeerResult {
  readonly code: number;
  readonly output: string;
}

/** A folder, and a shell in it that starts the programs: from a process as large as a test each start would take longer
 *  than the program runs. One program at a time. */
export class PeerFolder {
  readonly path: string;
  readonly #shell: ChildProcessWithoutNullStreams;
  #output = '';
  #ended: (() => void) | undefined;

  constructor(path: string) {
    mkdirSync(path);
    this.path = path;
    this.#shell = spawn('/bin/sh', { cwd: path });
    this.#shell.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text;
      if (END.test(this.#output)) this.#ended?.();
    });
  }

  /** Runs `qemu-img ARGS`; relative names are of the folder. */
  async run(...args: string[]): Promise<PeerResult> {
    this.#output = '';
    const ended = new Promise<void>((resolve, reject) => {
      this.#ended = resolve;
      this.#shell.once('close', () => reject(new Error('The shell that starts qemu-img has ended')));
    });
    const quoted = args.map((arg) => `'${arg}'`).join(' ');
    this.#shell.stdin.write(`/usr/bin/qemu-img ${quoted} < /dev/null 2>&1; printf '\\n--- ended with %d\\n' $?\n`);
    await ended;
    this.#shell.removeAllListeners('close');
    return { code: Number(END.exec(this.#output)![1]), output: this.#output.replace(END, '') };
  }

  end(): void {
    this.#shell.removeAllListeners('close');
    this.#shell.stdin.end();
  }
}
