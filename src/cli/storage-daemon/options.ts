/** The options of the storage daemon. Each takes effect before the next is looked at. */
import type { Daemon } from '../../daemon/daemon.ts';
import type { GivenHere } from '../../daemon/node-options.ts';
import { objectHelp } from '../../lib/objects/text.ts';
import type { BlockdevOptions } from '../../lib/options.ts';
import { Checker } from '../../qmp/check.ts';
import { QmpError } from '../../qmp/errors.ts';
import type { JsonObject } from '../../qmp/json.ts';
import type { CommandName, Qapi } from '../../qmp/schema/schema.ts';
import type { Schema } from '../../qmp/schema/types.ts';
import type { OptionDef } from '../getopt.ts';
import { type ChardevOption, chardevHelp, chardevOption } from './chardev.ts';
import { startedBy } from './daemonize.ts';
import { parseOptionText, spellOutFlags } from './option-text.ts';

export interface Option extends OptionDef {
  readonly long: string;
}

export const OPTIONS: readonly Option[] = [
  { long: 'blockdev', argument: 'required' },
  { long: 'chardev', argument: 'required' },
  { long: 'daemonize' },
  { long: 'export', argument: 'required' },
  { short: 'h', long: 'help' },
  { long: 'monitor', argument: 'required' },
  { long: 'nbd-server', argument: 'required' },
  { long: 'object', argument: 'required' },
  { long: 'pidfile', argument: 'required' },
  { short: 'T', long: 'trace', argument: 'required' },
  { short: 'V', long: 'version' },
];

export class StorageDaemon implements AsyncDisposable {
  onQuit: (() => void) | undefined;
  #daemon: Promise<Daemon> | undefined;
  #release: (() => void) | undefined;

  /** True where the option only asked for help, which was printed. */
  async apply({ long }: Option, value: string): Promise<boolean> {
    switch (long) {
      case 'blockdev': {
        const options = await this.#options('BlockdevOptions', value, 'driver');
        await (await this.daemon()).nodes.add(options as unknown as BlockdevOptions);
        return false;
      }
      case 'chardev':
        return this.#chardev(value);
      case 'export':
        await this.#run('block-export-add', (await this.#options('BlockExportOptions', value, 'type')) as never);
        return false;
      case 'monitor': {
        const {
          chardev,
          mode,
          pretty = false,
        } = (await this.#options('MonitorOptions', value, 'chardev')) as Qapi<'MonitorOptions'>;
        if (mode === 'readline') throw new QmpError('Only QMP is supported');
        (await this.daemon()).addMonitor(chardev, pretty);
        return false;
      }
      case 'nbd-server': {
        const options = (await this.#options('NbdServerOptions', value)) as Qapi<'NbdServerOptions'>;
        await (await this.daemon()).nbd.start(options);
        return false;
      }
      case 'object':
        return this.#object(value);
      default:
        // Looked at before.
        return false;
    }
  }

  /** Everything runs: who has come before is answered from here on. */
  async ready(): Promise<void> {
    await this.daemon();
    this.#release?.();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await (await this.#daemon)?.close();
  }

  daemon(): Promise<Daemon> {
    this.#daemon ??= this.#start();
    return this.#daemon;
  }

  async #start(): Promise<Daemon> {
    const { Daemon } = await import('../../daemon/daemon.ts');
    const daemon = await Daemon.start();
    this.#release = daemon.hold();
    daemon.onQuit = () => this.onQuit?.();
    return daemon;
  }

  /** What options may be is known before anything runs. */
  async #schema(): Promise<Schema> {
    return (await import('../../daemon/schema.ts')).builtinSchema();
  }

  async #run<N extends CommandName>(command: N, ...args: GivenHere<N>): Promise<void> {
    await (await this.daemon()).run(command, ...args);
  }

  async #options(type: string, text: string, implied?: string): Promise<unknown> {
    const { style, value, help } = parseOptionText(text, implied);
    if (help) throw new QmpError('Help is not available for this option');
    return new Checker(await this.#schema(), style).value(type, value, '');
  }

  async #object(text: string): Promise<boolean> {
    const daemon = await this.daemon();
    const help = objectHelp(daemon.objects, text);
    if (help !== undefined) {
      process.stdout.write(help);
      return true;
    }
    const { style, value } = parseOptionText(text, 'qom-type');
    const options = new Checker(daemon.schema, style).value('ObjectOptions', value, '');
    await daemon.run('object-add', options as never);
    return false;
  }

  async #chardev(text: string): Promise<boolean> {
    const { value, style, help } = parseOptionText(text.startsWith('{') ? text : spellOutFlags(text), 'backend');
    if (help) {
      process.stdout.write(chardevHelp());
      return true;
    }
    const option = style === 'json' ? jsonChardev(value) : chardevOption(value);
    const { id, mux } = option;
    const { type } = option.backend;
    if (type === 'stdio' && startedBy(process.env)) throw new QmpError('cannot use stdio with -daemonize');
    const backend = new Checker(await this.#schema(), style).value('ChardevBackend', option.backend, '');
    const { chardevs } = await this.daemon();
    const { pty } = await chardevs.add(mux ? `${id}-base` : id, backend as Qapi<'ChardevBackend'>);
    if (pty !== undefined) process.stdout.write(`char device redirected to ${pty} (label ${id})\n`);
    if (mux) await chardevs.add(id, { type: 'mux', data: { chardev: `${id}-base` } });
    return false;
  }
}

/** As `chardev-add` takes it. */
function jsonChardev({ id, backend }: JsonObject): ChardevOption {
  if (typeof id !== 'string') throw new QmpError('chardev: no id specified');
  return { id, backend: backend as JsonObject, mux: false };
}
