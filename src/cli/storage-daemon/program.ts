/** `blockplane daemon`, and `blockplane qemu-storage-daemon`, whose command line it takes. */

import { Gate } from '../../aio/op.ts';
import { PidFile } from '../../lib/pid-file.ts';
import { notifyServiceManager } from '../../lib/service-manager.ts';
import { type GivenOption, OptionError, readCommandLine } from '../getopt.ts';
import type { Program } from '../programs.ts';
import { becomeBackground, daemonize, startedBy } from './daemonize.ts';
import { helpText, versionText } from './help.ts';
import { OPTIONS, type Option, StorageDaemon } from './options.ts';
import { applyTrace } from './trace.ts';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** `name`: what it is called in messages. */
export function storageDaemon(name: string): Program {
  return { run: (argv) => run(name, argv) };
}

async function run(name: string, argv: readonly string[]): Promise<number> {
  const fail = (error: unknown): number => {
    process.stderr.write(`${name}: ${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  };
  let options: readonly GivenOption<Option>[];
  try {
    const line = readCommandLine(argv, OPTIONS);
    const [operand] = line.operands;
    if (operand !== undefined) throw new Error(`${operand}: Unexpected argument`);
    options = line.options;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return fail(error instanceof OptionError ? new Error(error.message) : error);
  }
  const given = (long: string): boolean => options.some(({ def }) => def.long === long);
  if (given('help')) {
    process.stdout.write(helpText(name));
    return 0;
  }
  if (given('version')) {
    process.stdout.write(versionText(name));
    return 0;
  }
  if (given('daemonize')) {
    if (!startedBy(process.env)) return daemonize(argv);
    becomeBackground();
  }
  let pidFile: PidFile | undefined;
  const path = options.findLast(({ def }) => def.long === 'pidfile')?.value;
  const started = (): void => {
    if (path === undefined) return;
    pidFile = new PidFile(path);
    pidFile.write(process.pid);
  };
  try {
    return await serve(name, options, started, fail);
  } catch (error) {
    return fail(error);
  } finally {
    // Whoever waits for it to go finds that all is closed.
    pidFile?.remove();
  }
}

/** `started`: everything is there. */
async function serve(
  name: string,
  options: readonly GivenOption<Option>[],
  started: () => void,
  fail: (error: unknown) => number,
): Promise<number> {
  await using storage = new StorageDaemon();
  const ended = endOf(storage);
  try {
    for (const { def, value, spelled } of options) {
      try {
        const unknown = (event: string, where?: string): void => {
          const place = where === undefined ? ` ${spelled}` : where;
          process.stderr.write(`${name}:${place}: warning: trace event '${event}' does not exist\n`);
        };
        if (def.long === 'trace' && applyTrace(value ?? '', unknown)) return 0;
        // What waits for a first client may be told to end before one comes.
        if (await Promise.race([storage.apply(def, value ?? ''), ended.promise.then(() => true)])) return 0;
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        throw new Error(`${spelled}: ${error.message}`, { cause: error });
      }
    }
    started();
    await storage.ready();
    notifyServiceManager(process.env, 'READY=1');
    process.send?.('ready', () => process.disconnect?.());
    await ended.promise;
    notifyServiceManager(process.env, 'STOPPING=1');
    return 0;
  } catch (error) {
    return fail(error);
  } finally {
    ended.release();
  }
}

/** The end, by a signal or by a client that says so. */
function endOf(storage: StorageDaemon): { readonly promise: Promise<void>; release(): void } {
  const gate = new Gate();
  const end = (): void => gate.open();
  for (const signal of SIGNALS) process.on(signal, end);
  storage.onQuit = end;
  return {
    promise: gate.promise,
    release() {
      for (const signal of SIGNALS) process.off(signal, end);
    },
  };
}
